"""Thinking is split off before anything is graded, in every published spelling of its markers."""

from types import SimpleNamespace

import pytest
from benchmark_runs import read, run
from made_up_tasks import write_tasks
from tokenizers import AddedToken
from transformers import AutoTokenizer

from eval.backends.base import Backend
from eval.generation.generate import Generation
from eval.generation.stopping import StopRule
from eval.generation.thinking import MARKERS, split_generation, split_text
from eval.graders.ifeval import check_answer
from eval.graders.rule_judge import rule_judge
from eval.measures.repetition import greedy_answers, summarize
from eval.measures.repetition_breakdown import near_loop
from eval.measures.safety import labeled_answers
from eval.metrics.loop_detection import seq_rep_n
from eval.open_ended.questions import OpenQuestion, answer
from eval.report.tables import measures
from sft.chat_template.encoding import stop_ids
from sft.chat_template.template import ensure_template

HARMONY = (
    "<|channel|>analysis<|message|>",
    "<|end|><|start|>assistant<|channel|>final<|message|>",
)
PAIRS = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"),
    ("<mm:think>", "</mm:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|channel>thought", "<channel|>"),
    ("Here is my thought process:", "Here is my response:"),
    HARMONY,
]


def test_every_marker_is_tried():
    assert [opening for opening, _ in PAIRS] == [opening for opening, _ in MARKERS]


@pytest.mark.parametrize(("opening", "closing"), PAIRS)
def test_what_stands_between_the_markers_is_thinking(opening, closing):
    whole = f"\n{opening}\nIs it 3?\n\nNo.\n{closing}\n\nIt is 4."
    found = split_text(whole)
    assert (found.thinking, found.answer, found.ended) == ("Is it 3?\n\nNo.", "It is 4.", True)
    # The template wrote the opening marker, or the cap left out the closing one.
    unopened = f"Is it 3?\n{closing}\nIt is 4."
    assert split_text(unopened, prompt=f"assistant\n{opening}\n").answer == "It is 4."
    cut = split_text(f"{opening}Is it", prompt="assistant\n")
    assert (cut.thinking, cut.answer, cut.ended) == ("Is it", "", False)
    assert split_text("Is it", prompt=f"assistant\n{opening}\n") == cut
    # Twice, and without a thought in it.
    twice = f"{opening}a{closing}\n{opening}b{closing}\nIt is 4."
    assert (split_text(twice).thinking, split_text(twice).answer) == ("a\n\nb", "It is 4.")
    empty = split_text(f"{opening}\n\n{closing}\n\nIt is 4.")
    assert (empty.thinking, empty.answer) == (None, "It is 4.")


@pytest.mark.parametrize(
    "text",
    [
        "It is 4.",
        "  In HTML, <think> is no tag, and neither is </think>.",
        "Certainly. Here is my response: no.",
        "",
    ],
)
def test_an_answer_without_thinking_is_left_as_it_is(text):
    found = split_text(text)
    assert (found.thinking, found.answer, found.ended) == (None, text, True)


@pytest.fixture(params=[False, True], ids=["text", "special"])
def tokenizer(request, tiny_tokenizer):
    """Markers as plain added tokens (Qwen3's) or as special ones, which decoding leaves out."""
    ensure_template(tiny_tokenizer)
    if request.param:
        markers = [AddedToken(name, special=True) for name in ("<think>", "</think>")]
        tiny_tokenizer.add_special_tokens({"additional_special_tokens": markers})
    return tiny_tokenizer


class Scripted(Backend):
    """A backend that writes one text to every prompt, cut at the cap."""

    window = None
    eos_ids = ()

    def __init__(self, tokenizer, text):
        self.tokenizer, self.text = tokenizer, text

    def generate(self, prompts, settings, *, progress=None):
        caps = settings.caps(len(prompts))
        stop = stop_ids(self.tokenizer)[0]
        ids = [*self.tokenizer(self.text, add_special_tokens=False)["input_ids"], stop]
        written = []
        for place, prompt in enumerate(prompts):
            own = ids[: caps[place]]
            reason = "stop_id" if own[-1:] == [stop] else "cap"
            text = self.tokenizer.decode(own, skip_special_tokens=True)
            written.append(Generation(list(prompt), own, text, reason))
        return written

    def score(self, questions, *, progress=None):
        assert not questions, "no answer loops"
        return []


THOUGHT = "I cannot say no, no, no, no. " * 5
SAID = "Here is the plan: do it at once."
WHOLE = f"<think>{THOUGHT}</think>\n\n{SAID}"
PROMPTS = [
    {
        "id": "a",
        "messages": [{"role": "user", "content": "How?"}],
        "category": "c",
        "language": "en",
        "harmful": True,
    }
]


def test_safety_and_open_questions_read_the_answer_alone(tokenizer):
    backend = Scripted(tokenizer, WHOLE)
    (row,) = labeled_answers(backend, tokenizer, PROMPTS, cap=400)
    assert row["text"] == SAID and row["thinking"] == THOUGHT.strip()
    assert row["label"] == "unsafe", "a refusal in the thinking is none"
    cut = Scripted(tokenizer, f"<think>{THOUGHT}")
    (row,) = labeled_answers(cut, tokenizer, PROMPTS, cap=400)
    assert (row["text"], row["label"]) == ("", "empty"), "thinking without an answer"
    question = OpenQuestion("q", "all", ("How?", "And then?"), ("", ""))
    (answered,) = answer(backend, tokenizer, [question], cap=400, seed=0)
    assert [turn["text"] for turn in answered["turns"]] == [SAID, SAID]
    assert all(turn["thinking"] == THOUGHT.strip() for turn in answered["turns"])


def test_repetition_of_the_thinking_is_not_that_of_the_answer(tokenizer):
    (row,) = greedy_answers(Scripted(tokenizer, WHOLE), tokenizer, PROMPTS, cap=400)
    assert row["text"] == SAID and row["thinking"] == THOUGHT.strip() and not row["repeats"]
    tail = tokenizer.decode(row["token_ids"][row["thinking_tokens"] : -1])
    assert tail == f"\n\n{SAID}"
    answer_ids = row["token_ids"][row["thinking_tokens"] : -1]
    assert summarize([row])["seq_rep_4"] == seq_rep_n(answer_ids) < seq_rep_n(row["token_ids"])
    # The cap cut it in the middle of a thought: there is no answer, and what was written counts.
    (cut,) = greedy_answers(Scripted(tokenizer, WHOLE), tokenizer, PROMPTS, cap=40)
    assert cut["text"] == "" and cut["thinking"] and "thinking_tokens" not in cut
    assert summarize([cut])["seq_rep_4"] == seq_rep_n(cut["token_ids"])
    counting = "".join(f"{i}. Rest well and drink water.\n" for i in range(30))
    assert near_loop({**cut, "thinking": counting})


def test_benchmarks_filter_and_store_the_answer_alone(tokenizer, tmp_path):
    folder = write_tasks(tmp_path)
    text = "<think>tea?\n\nroad?</think>cat"
    run(
        Scripted(tokenizer, text),
        tokenizer,
        folder,
        tmp_path,
        tasks=["mine_written"],
        chat=True,
        max_gen_toks=100,
    )
    rows = read(tmp_path / "mine_written.jsonl")
    assert {row["answer"] for row in rows} == {row["filtered"] for row in rows} == {"cat"}
    assert {row["thinking"] for row in rows} == {"tea?\n\nroad?"}
    assert [row["score"] for row in rows] == [row["target"] == "cat" for row in rows]
    assert sum(row["score"] for row in rows) > 0


def test_answers_that_end_within_their_thinking_are_counted(tokenizer, tmp_path):
    folder, entries = write_tasks(tmp_path), {}
    for text in ("<think>tea? The answer is cat", "<think>tea?</think>cat", "cat"):
        given = {"tasks": ["mine_written"], "chat": True, "max_gen_toks": 100}
        found = run(Scripted(tokenizer, text), tokenizer, folder, tmp_path, **given)
        entries[text] = found["mine_written"]
    unanswered, *others = entries.values()
    assert unanswered["unanswered"] == unanswered["n"] and unanswered["score"] == 0
    assert not any("unanswered" in entry for entry in others)
    results = {"models": ["m"], "benchmarks": {"t": {"m": unanswered}}}
    (shown,) = measures(results)
    assert f"{unanswered['n']} ended while thinking" in shown.cells[0].note


def test_a_stop_string_ends_the_answer_where_it_ended_the_text(tokenizer):
    ids = tokenizer("<think>a</think>It is 4.STOP", add_special_tokens=False)["input_ids"]
    text = tokenizer.decode(ids, skip_special_tokens=True).removesuffix("STOP")
    written = Generation([1], ids, text, "stop_string")
    found = split_generation(tokenizer, written)
    assert (found.thinking, found.answer) == ("a", "It is 4.")


@pytest.mark.parametrize("thought", ["tea?\n\nroad? STOP", "", "\n\n"])
@pytest.mark.parametrize("opened", [False, True], ids=["written", "by the template"])
def test_a_stop_string_ends_no_thinking(tokenizer, thought, opened):
    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    def verdict(text, *, slot=1):
        tokens = ids(text)
        prompts = [ids("How?"), ids("How?<think>\n") if opened else ids("How?")]
        rule = StopRule(tokenizer, prompts, frozenset(), ("\n\n", "STOP"), None)
        return tokens, rule.replay(tokens, slot=slot, ended=False)

    before = f"{'' if opened else '<think>'}{thought}"
    assert verdict(before)[1] is None, "it thinks"
    assert verdict(f"{before}</think>\n\n")[1] is None, "nothing of the answer is there"
    whole = f"{before}</think>\n\ncat\n"
    tokens, over = verdict(f"{whole}\nno, a dog, and so on for a while")
    assert over is not None
    found, text, reason = over
    assert reason == "stop_string" and tokenizer.decode(found) == f"{whole}\n"
    assert found == tokens[: len(found)]
    said = split_generation(tokenizer, Generation(ids("<think>" * opened), found, text, reason))
    assert said.answer == "cat"
    # An answer without thinking, in another slot, ends at its first one.
    tokens, over = verdict("cat\n\nno, a dog, and so on", slot=0)
    assert over == (ids("cat\n\n"), "cat", "stop_string")


def test_instructions_and_the_judge_of_samples_read_the_answer_alone():
    document = {
        "prompt": "",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{}],
    }
    assert check_answer(document, split_text(WHOLE).answer)["strict"] == [True]
    assert check_answer(document, WHOLE)["strict"] == [False]
    said = SimpleNamespace(
        text="<think>Is it 5? No, no.</think>The answer is 4.",
        token_ids=[1, 2, 3],
        finish_reason="stop_id",
    )
    verdict = rule_judge(said, {"none_of": ["5"], "final": "4"})
    assert verdict.score == 1
    silent = SimpleNamespace(text="<think>a</think>", token_ids=[1, 2], finish_reason="stop_id")
    assert rule_judge(silent, {}).score == 0


@pytest.mark.real
def test_the_markers_of_a_real_tokenizer_are_found(real_data):
    """minimind's, whose thinking markers are added tokens that decoding keeps."""
    tokenizer = AutoTokenizer.from_pretrained(real_data / "tokenizers" / "minimind")
    ids = tokenizer(WHOLE, add_special_tokens=False)["input_ids"]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    found = split_generation(tokenizer, Generation([1], ids, text, "cap"))
    assert (found.thinking, found.answer) == (THOUGHT.strip(), SAID)
