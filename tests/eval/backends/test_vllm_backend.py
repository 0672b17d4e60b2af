"""The vLLM backend scores and writes what the transformers backend does."""

import pytest
import torch
import vllm_stand_in
from eval_requests import QUESTIONS, choices, generation_requests, instances
from looping_model import PROMPTS
from tiny_models import make_tiny_model, make_tiny_tokenizer
from vllm_tests import REAL, SECTION, context_of, draws_as_ours, on_path

from eval.backends.base import ScoreRequest
from eval.backends.loading import loaded
from eval.backends.transformers_backend import TransformersBackend
from eval.backends.vllm_backend import find_vllm
from eval.generation.generate import GenerationSettings
from eval.measures import repetition
from eval.metrics import loop_detection
from eval.tasks.lm_eval_model import LmEvalModel
from sft.chat_template.encoding import encode_prompt, stop_ids
from sft.chat_template.template import ensure_template
from sft.config.sections import EvalSection, LoraSection
from sft.model.loading import load_model, load_trainable, save_model


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """One model in both backends, and the tokenizer: (vLLM, transformers, tokenizer)."""
    folder = tmp_path_factory.mktemp("served")
    tokenizer = make_tiny_tokenizer()
    ensure_template(tokenizer)
    # vLLM's kernels want heads of 32 at least.
    model = make_tiny_model(
        3,
        initializer_range=0.09,
        hidden_size=64,
        num_attention_heads=2,
        num_hidden_layers=1,
        max_position_embeddings=256,
    )
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        if not REAL:
            on_path(patch, vllm_stand_in.install(folder / "packages"))
        context = context_of(folder, tokenizer)
        path = str(folder / "model")
        with (
            loaded(path, context, SECTION) as theirs,
            loaded(path, context, EvalSection()) as ours,
        ):
            yield theirs, ours, tokenizer
    find_vllm.cache_clear()


def engines(served, **options):
    """An engine over each; that over transformers with vLLM's window, which is two tokens less."""
    theirs, ours, tokenizer = served
    pair = [LmEvalModel(backend, tokenizer, chat=False, **options) for backend in (theirs, ours)]
    assert (pair[0].window, pair[1].window) == (254, 256)
    pair[1].window = 254
    return pair


def assert_same_scores(theirs, ours):
    assert len(theirs) == len(ours)
    for (total, greedy), (our_total, our_greedy) in zip(theirs, ours, strict=True):
        assert total == pytest.approx(our_total, abs=1e-3 if REAL else 1e-4)
        assert greedy == our_greedy


def test_choices_score_as_with_transformers_up_to_a_full_window(served):
    questions = [*QUESTIONS * 3, ("too long " * 60, [" a", " bcd"])]
    theirs, ours = (engine.loglikelihood(choices(questions)) for engine in engines(served))
    assert_same_scores(theirs, ours)


def test_greedy_continuations_are_known_as_such(served):
    theirs, ours, _ = served
    (answer,) = ours.generate([[70, 80, 90]], GenerationSettings(max_new_tokens=12, stop_ids=[]))
    for wrong in (12, 5, 0):
        tail = list(answer.token_ids)
        if wrong < 12:
            tail[wrong] = (tail[wrong] + 1) % 260
        asked = [ScoreRequest((70, 80, 90), tuple(tail))]
        assert theirs.score(asked)[0].agreed == ours.score(asked)[0].agreed == wrong


def test_texts_score_as_with_transformers_over_several_windows(served):
    texts = ["A short one.", "Ein längerer Text, 反复。 " * 20]
    requests = instances("loglikelihood_rolling", [(text,) for text in texts])
    theirs, ours = (engine.loglikelihood_rolling(requests) for engine in engines(served))
    assert theirs == pytest.approx(ours, abs=1e-2)


@pytest.mark.parametrize("sampled", [False, pytest.param(True, marks=draws_as_ours)])
def test_generation_of_tasks_reads_as_with_transformers(served, sampled):
    heat = {"do_sample": True, "temperature": 0.8, "top_p": 0.9} if sampled else {}
    settings = {"until": [], "max_gen_toks": 30} | heat
    free = engines(served)[1].generate_until(generation_requests(settings))
    settings["until"] = [free[0][3:5], free[1][10:12], "never written"]
    pair = engines(served)
    theirs, ours = (engine.generate_until(generation_requests(settings)) for engine in pair)
    assert theirs == ours != free
    assert pair[0].finish_reasons == pair[1].finish_reasons
    assert "stop_string" in pair[0].finish_reasons.values()


PLACES = [[10 + i, 100 + 3 * i, 60 + i * i % 90][: 1 + i % 3] for i in range(12)]


def both(served, prompts, **options):
    settings = GenerationSettings(**{"stop_ids": [], **options})
    theirs, ours, _ = served
    return theirs.generate(prompts, settings), ours.generate(prompts, settings)


def test_rows_end_at_their_own_caps_and_stop_ids(served):
    caps = [1 + 5 * i for i in range(12)]
    free, ours = both(served, PLACES, max_new_tokens=caps)
    assert free == ours
    assert [len(one.token_ids) for one in free] == caps
    stops = [free[6].token_ids[4], free[9].token_ids[20]]
    theirs, ours = both(served, PLACES, max_new_tokens=caps, stop_ids=stops)
    assert theirs == ours
    assert {one.finish_reason for one in theirs} == {"stop_id", "cap"}
    assert all(one.token_ids[-1] in stops for one in theirs if one.finish_reason == "stop_id")


SAMPLED = {"temperature": 1.1, "top_p": 0.95, "stop_ids": []}


def test_each_row_draws_by_its_own_seed(served):
    theirs, *_ = served
    seeds = [4, 7, 4, 8, 7]
    rows = theirs.generate(
        [PLACES[0]] * 5, GenerationSettings(max_new_tokens=20, seeds=seeds, **SAMPLED)
    )
    answers = dict(zip(seeds, [row.token_ids for row in rows], strict=True))
    assert [row.token_ids for row in rows] == [answers[seed] for seed in seeds]
    assert len({tuple(answer) for answer in answers.values()}) == 3


@draws_as_ours
def test_sampled_rows_are_those_of_transformers(served):
    theirs, ours = both(served, PLACES, max_new_tokens=20, seeds=[*range(12)], **SAMPLED)
    assert theirs == ours


def test_loops_are_left_at_the_same_token(served):
    def loops(tokens):
        return loop_detection.find_loop(tokens) is not None

    theirs, ours = both(served, PLACES, max_new_tokens=160, stop_when=loops)
    assert theirs == ours
    assert "loop" in {one.finish_reason for one in theirs}
    assert all(len(one.token_ids) < 160 for one in theirs if one.finish_reason == "loop")


def test_a_stop_string_that_only_vllm_sees_ends_nothing(served):
    """vLLM decodes after the prompt: its text includes a character that the prompt began."""
    _, ours, tokenizer = served
    letters = {chr(code): chr(code).encode() for code in range(0xC0, 0x800)}
    (byte,) = {len(tokenizer(chr(65 + i))["input_ids"]) for i in range(26)}
    assert byte == 1, "a token a byte"
    first = {pair[0]: tokenizer(letter)["input_ids"] for letter, pair in letters.items()}
    prompts = [[65 + i, ids[0]] for i in range(40) for ids in first.values()]
    written = ours.generate(prompts, GenerationSettings(max_new_tokens=1, stop_ids=[]))
    after = {tuple(tokenizer(letter)["input_ids"]): letter for letter in letters}
    split = [
        (prompt, after[prompt[1], one.token_ids[0]])
        for prompt, one in zip(prompts, written, strict=True)
        if (prompt[1], one.token_ids[0]) in after
    ]
    prompt, letter = split[0]
    theirs, ours = both(served, [prompt], max_new_tokens=20, stop_strings=[letter])
    assert theirs == ours
    assert len(theirs[0].token_ids) > 1


def test_repetition_is_measured_as_with_transformers(served):
    theirs, ours, tokenizer = served
    rows = [repetition.greedy_answers(one, tokenizer, PROMPTS, cap=60) for one in (theirs, ours)]
    assert rows[0] == rows[1]
    assert any(row["repeats"] for row in rows[0])


@draws_as_ours
def test_sampled_repetition_is_measured_as_with_transformers(served):
    theirs, ours, tokenizer = served
    options = {"cap": 40, "temperature": 0.6, "seed": 1}
    rows = [
        repetition.sampled_answers(one, tokenizer, PROMPTS, **options) for one in (theirs, ours)
    ]
    assert rows[0] == rows[1]


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    if not REAL:
        on_path(monkeypatch, vllm_stand_in.install(tmp_path / "packages"))
    yield
    find_vllm.cache_clear()


def test_an_adapter_is_merged_and_leaves_nothing_behind(stand_in, tmp_path, tiny_tokenizer):
    ensure_template(tiny_tokenizer)
    base = make_tiny_model(hidden_size=64, num_attention_heads=2)
    base.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    context = context_of(tmp_path, tiny_tokenizer)
    adapter = load_trainable(
        str(tmp_path / "base"),
        context.placement,
        lora=LoraSection(r=4),
        seed=0,
        trust_remote_code=False,
    )
    with torch.no_grad():
        for name, weight in adapter.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    save_model(adapter, tiny_tokenizer, tmp_path / "adapter")
    path, asked = str(tmp_path / "adapter"), [ScoreRequest((70, 80), (90, 100, 110))]
    known = TransformersBackend(load_model(path, context.placement), tiny_tokenizer)
    bare = load_model(str(tmp_path / "base"), context.placement)
    before = set(tmp_path.iterdir())
    with loaded(path, context, SECTION) as backend:
        (found,) = backend.score(asked)
        assert backend.eos_ids == known.eos_ids
    assert found.log_prob == pytest.approx(known.score(asked)[0].log_prob, abs=1e-3)
    (unchanged,) = TransformersBackend(bare, tiny_tokenizer).score(asked)
    assert abs(found.log_prob - unchanged.log_prob) > 0.01
    assert set(tmp_path.iterdir()) == before


@pytest.mark.gpu
def test_vllm_on_a_gpu_scores_and_writes_as_transformers(served):
    """The tests above with TRUING_VLLM_PYTHON are the rest of it."""
    if not (torch.cuda.is_available() and REAL):
        pytest.skip("needs a CUDA device and TRUING_VLLM_PYTHON")
    theirs, ours, tokenizer = served
    prompts = [encode_prompt(tokenizer, prompt["messages"]) for prompt in PROMPTS]
    settings = GenerationSettings(max_new_tokens=60, stop_ids=stop_ids(tokenizer))
    written = [one.generate(prompts, settings) for one in (theirs, ours)]
    asked = [ScoreRequest(tuple(one.prompt_ids), tuple(one.token_ids)) for one in written[1]]
    for their, our in zip(theirs.score(asked), ours.score(asked), strict=True):
        assert their.log_prob == pytest.approx(our.log_prob, abs=0.01)
    same = [a.token_ids == b.token_ids for a, b in zip(*written, strict=True)]
    assert sum(same) >= len(same) - 1
