import json
import math

import pytest
import torch
from eval_requests import QUESTIONS, choices, generation_requests, instances
from lm_eval.models.huggingface import HFLM
from tiny_models import make_tiny_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    MistralConfig,
)

from eval.backends.transformers_backend import backend_of
from eval.tasks.lm_eval_model import LmEvalModel
from sft.chat_template.encoding import encode_prompt, stop_ids
from sft.chat_template.template import ensure_template
from sft.errors import UserError
from sft.packing.logprobs import enable_scoring


def reference(model, tokenizer, **changes):
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, device="cpu", **changes)


def assert_same_scores(ours, theirs):
    assert len(ours) == len(theirs)
    for (total, greedy), (their_total, their_greedy) in zip(ours, theirs, strict=True):
        assert total == pytest.approx(their_total, abs=1e-4, rel=1e-6)
        assert greedy == their_greedy


@pytest.fixture
def model():
    return enable_scoring(make_tiny_model(max_position_embeddings=64))


@pytest.fixture
def bos_tokenizer(tiny_tokenizer):
    """A tokenizer that puts a BOS in front of every text, as Llama's does."""
    from tokenizers.processors import TemplateProcessing

    tiny_tokenizer.bos_token = "<|im_start|>"
    tiny_tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", tiny_tokenizer.bos_token_id)]
    )
    assert tiny_tokenizer("a")["input_ids"][0] == tiny_tokenizer.bos_token_id
    return tiny_tokenizer


def test_choices_score_as_in_lm_eval(model, tiny_tokenizer):
    ours = LmEvalModel(model, tiny_tokenizer, chat=False).loglikelihood(choices())
    assert_same_scores(ours, reference(model, tiny_tokenizer).loglikelihood(choices()))


def test_choices_with_a_bos_score_as_in_lm_eval(model, bos_tokenizer):
    questions = [*QUESTIONS, ("<|im_start|>BOS is there already:", [" yes", " no"])]
    ours = LmEvalModel(model, bos_tokenizer, chat=False).loglikelihood(choices(questions))
    assert_same_scores(ours, reference(model, bos_tokenizer).loglikelihood(choices(questions)))


@pytest.mark.parametrize("attention", ["documents", "sdpa", "eager"])
@pytest.mark.parametrize("window", [None, 40])
def test_questions_behind_shared_examples_score_as_in_lm_eval(
    attention, window, tiny_tokenizer, monkeypatch
):
    """Examples of two subjects, read once each; a window, as Mistral's, keeps them from it."""
    kind = {"sliding_window": window} if window else {}
    config = (MistralConfig if window else LlamaConfig)(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=1,
        **kind,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    examples = [
        f"{subject}: what is two and two? Four. And three and three? Six. " for subject in "AB"
    ]
    asked = [
        (examples[place % 2] + f"And {word} twice?", [" Eight", " Ten", f" {word}"])
        for place, word in enumerate(["four", "five", "one hundred", "a"])
    ]
    lengths = []
    read = enable_scoring(model).forward

    def counting(*args, **kwargs):
        lengths.append(kwargs["input_ids"].numel())
        return read(*args, **kwargs)

    ours = LmEvalModel(model, tiny_tokenizer, chat=False).loglikelihood(choices(asked))
    model.set_attn_implementation("sdpa")
    assert_same_scores(ours, reference(model, tiny_tokenizer).loglikelihood(choices(asked)))
    model.set_attn_implementation(attention)
    monkeypatch.setattr(model, "forward", counting)
    LmEvalModel(model, tiny_tokenizer, chat=False).loglikelihood(choices(asked))
    whole = sum(len(context) + sum(map(len, options)) for context, options in asked)
    assert (sum(lengths) < 0.8 * whole) == (window is None)


def test_examples_that_lack_the_question_itself_keep_no_others_from_sharing(
    tiny_tokenizer, monkeypatch
):
    """As where a file has one split: the first questions are examples too, and lack themselves."""
    model = make_tiny_model(max_position_embeddings=512, attn_implementation="documents")
    texts = [f"{letter * 3} is what number in the alphabet? It is {letter}. " for letter in "abcde"]
    asked = []
    for place in range(12):
        examples = "".join([text for i, text in enumerate(texts) if i != place][:4])
        own = texts[place] if place < len(texts) else f"And {place}? "
        asked.append((examples + own, [" one", " two"]))
    ours = LmEvalModel(enable_scoring(model), tiny_tokenizer, chat=False).loglikelihood(
        choices(asked)
    )
    assert_same_scores(ours, reference(model, tiny_tokenizer).loglikelihood(choices(asked)))
    lengths = []
    read = model.forward

    def counting(*args, **kwargs):
        lengths.append(kwargs["input_ids"].numel())
        return read(*args, **kwargs)

    monkeypatch.setattr(model, "forward", counting)
    LmEvalModel(model, tiny_tokenizer, chat=False).loglikelihood(choices(asked))
    # The first four are read alone, the fifth and those after it behind the same examples.
    alone = sum(len(context) + 8 for context, _ in asked[:4])
    shared = len("".join(texts[:4]))
    behind = sum(len(context) - shared + 8 for context, _ in asked[4:])
    assert sum(lengths) <= 1.02 * (alone + shared + behind)  # rows are padded a little


def test_nothing_to_ask_has_no_scores(model, tiny_tokenizer):
    assert backend_of(enable_scoring(model), tiny_tokenizer).score([]) == []


def test_what_greedy_decoding_writes_is_marked_greedy(model, tiny_tokenizer):
    engine = LmEvalModel(model, tiny_tokenizer, chat=False)
    ids = tiny_tokenizer("Once upon a time")["input_ids"]
    with torch.no_grad():
        best = int(model(torch.tensor([ids])).logits[0, -1].argmax())
    letters = [i for i in range(10, 60) if i != best]
    texts = [tiny_tokenizer.decode([best]), tiny_tokenizer.decode([letters[0]])]
    pairs = [("Once upon a time", text) for text in texts]
    (_, first), (_, second) = engine.loglikelihood(instances("loglikelihood", pairs))
    assert first and not second


def test_rolling_windows_score_as_in_lm_eval(model, tiny_tokenizer):
    texts = ["short", "x" * 63, "y" * 64, "A longer text than the window of the model. " * 5]
    requests = instances("loglikelihood_rolling", [(text,) for text in texts])
    ours = LmEvalModel(model, tiny_tokenizer, chat=False).loglikelihood_rolling(requests)
    theirs = reference(model, tiny_tokenizer).loglikelihood_rolling(requests)
    assert ours == pytest.approx(theirs, abs=1e-3)


@pytest.mark.parametrize("text", ["A text of some words.", "<|im_start|>A text with its own."])
def test_a_bos_that_a_tokenizer_adds_is_scored_as_in_lm_eval(model, bos_tokenizer, text):
    """Else lm-eval's own logs of a model differ from what is measured here of the same model."""
    requests = instances("loglikelihood_rolling", [(text,)])
    plain, chat = (
        LmEvalModel(model, bos_tokenizer, chat=chat).loglikelihood_rolling(requests)
        for chat in (False, True)
    )
    theirs = reference(model, bos_tokenizer).loglikelihood_rolling(requests)
    assert plain == chat == [pytest.approx(theirs[0], abs=1e-3)]


def test_full_windows_fit_models_with_learned_positions(tiny_tokenizer):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=260, n_embd=32, n_layer=2, n_head=4, n_positions=32, bos_token_id=0
    )
    model = enable_scoring(GPT2LMHeadModel(config).eval())
    requests = instances("loglikelihood_rolling", [("z" * 100,), ("a",)])
    ours = LmEvalModel(model, tiny_tokenizer, chat=False).loglikelihood_rolling(requests)
    theirs = reference(model, tiny_tokenizer).loglikelihood_rolling(requests)
    assert ours == pytest.approx(theirs, abs=1e-3)


@pytest.mark.real
def test_a_merge_over_the_border_is_scored_as_in_lm_eval(real_data):
    """Between `http` and `://` GPT-2 merges: the context alone has other tokens than its part."""
    tokenizer = AutoTokenizer.from_pretrained(real_data / "tokenizers/gpt2")
    tokenizer.eos_token = "<|endoftext|>"
    model = enable_scoring(make_tiny_model(vocab_size=50304, hidden_size=16))
    questions = [("See http", ["://a.b", " and", "s"]), ("an \n", ["\nb", "c"]), ("x\t", [" y"])]
    engine = LmEvalModel(model, tokenizer, chat=False)
    ours, theirs = [], []
    for request in choices(questions):
        try:
            theirs += reference(model, tokenizer).loglikelihood([request])
            ours += engine.loglikelihood([request])
        except AssertionError:  # lm-eval cannot score a continuation that the merge swallowed
            (total, _) = engine.loglikelihood([request])[0]
            assert math.isfinite(total) and total < 0
    assert len(ours) >= 4
    assert_same_scores(ours, theirs)


def test_long_prompts_are_cut_as_in_lm_eval_counted_and_refused_beyond_a_share(
    model, tiny_tokenizer, caplog
):
    engine = LmEvalModel(model, tiny_tokenizer, chat=False)
    questions = [*QUESTIONS * 3, ("too long " * 20, [" a", " bcd"])]
    ours = engine.loglikelihood(choices(questions))
    assert "2 of 35 prompts cut on the left to the context window of 64 tokens" in caplog.text
    assert_same_scores(ours, reference(model, tiny_tokenizer).loglikelihood(choices(questions)))
    with pytest.raises(UserError, match="2 of 4 prompts are longer than the context window of 64"):
        engine.loglikelihood(choices([QUESTIONS[2], questions[-1]]))


def test_a_question_with_a_choice_beyond_the_window_is_left_out_and_many_are_refused(
    model, tiny_tokenizer, caplog
):
    engine = LmEvalModel(model, tiny_tokenizer, chat=False)
    asked = choices([*QUESTIONS, *QUESTIONS, ("a", ["b", "b" * 90])])
    scores = engine.loglikelihood(asked)
    assert engine.unfit == {(asked[-1].task_name, asked[-1].doc_id)}
    assert (
        f"1 of {len({r.doc_id for r in asked})} questions have a choice that alone" in caplog.text
    )
    assert scores[-1] == (-math.inf, False) and math.isfinite(scores[-2][0])
    others = LmEvalModel(model, tiny_tokenizer, chat=False).loglikelihood(asked[:-2])
    assert_same_scores(scores[:-2], others)
    with pytest.raises(UserError, match="1 of 1 questions have a choice that alone fills"):
        LmEvalModel(model, tiny_tokenizer, chat=False).loglikelihood(choices([("a", ["b" * 90])]))


@pytest.mark.parametrize("seed", [0, 1])
def test_generation_with_stops_reads_as_in_lm_eval(tiny_tokenizer, seed):
    model = enable_scoring(make_tiny_model(seed))
    engine = LmEvalModel(model, tiny_tokenizer, chat=False)
    free = engine.generate_until(generation_requests({"until": [], "max_gen_toks": 30}))
    stops = [free[0][3:5], free[1][10:11], "never written"]
    settings = {"until": stops, "max_gen_toks": 30, "do_sample": False}
    ours = engine.generate_until(generation_requests(settings))
    # One by one: lm-eval's rows of a batch do not stop at their own strings.
    theirs = reference(model, tiny_tokenizer).generate_until(
        generation_requests(settings), disable_tqdm=True
    )
    assert ours == theirs
    assert ours != free
    assert engine.finish_reasons[("t", 0)] == "stop_string"


def test_sampling_depends_on_the_seed(model, tiny_tokenizer):
    settings = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.0}

    def sampled(seed):
        engine = LmEvalModel(model, tiny_tokenizer, chat=False, seed=seed)
        return engine.generate_until(generation_requests(settings))

    assert sampled(1) == sampled(1) != sampled(2)


def test_settings_without_effect_are_refused(model, tiny_tokenizer):
    engine = LmEvalModel(model, tiny_tokenizer, chat=False)
    with pytest.raises(UserError, match=r"t: generation_kwargs.num_beams is not supported"):
        engine.generate_until(generation_requests({"until": [], "num_beams": 4}))
    with pytest.raises(UserError, match="256 new tokens do not fit the context window of 64"):
        engine.generate_until(generation_requests({"until": []}))


def test_chat_prompts_are_the_tokens_of_training(bos_tokenizer, model):
    """The template writes the special tokens; a second BOS would be a prompt never trained on."""
    ensure_template(bos_tokenizer)
    engine = LmEvalModel(model, bos_tokenizer, chat=True)
    messages = [{"role": "user", "content": "hello"}]
    text = engine.apply_chat_template(messages)
    assert engine.encode([text]) == [encode_prompt(bos_tokenizer, messages)]
    assert set(stop_ids(bos_tokenizer)) <= set(engine._stop_ids())
    opened = engine.apply_chat_template(
        [*messages, {"role": "assistant", "content": "The answer is"}],
        add_generation_prompt=False,
    )
    assert opened.endswith("The answer is")


def test_plain_prompts_get_one_bos_where_the_tokenizer_adds_one(bos_tokenizer, model):
    engine = LmEvalModel(model, bos_tokenizer, chat=False)
    bos = bos_tokenizer.bos_token_id
    for ids in engine.encode(["plain", "<|im_start|>there already"]):
        assert ids.count(bos) == 1 and ids[0] == bos


@pytest.mark.real
def test_real_choices_score_as_in_lm_eval(real_data):
    folder = real_data / "models/stories260K"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = enable_scoring(AutoModelForCausalLM.from_pretrained(folder).eval())
    questions = []
    with (real_data / "eval/hellaswag_val_1000.jsonl").open() as lines:
        for row in [json.loads(line) for line in lines][:12]:
            endings = [" " + ending for ending in row["endings"]]
            questions.append((f"{row['activity_label']}: {row['ctx']}", endings))
    with (real_data / "eval/arc_challenge.jsonl").open() as lines:
        for row in [json.loads(line) for line in lines][:12]:
            questions.append((f"{row['query']}\nAnswer:", [" " + c for c in row["choices"]]))
    ours = LmEvalModel(model, tokenizer, chat=False).loglikelihood(choices(questions))
    theirs = reference(model, tokenizer).loglikelihood(choices(questions))
    assert_same_scores(ours, theirs)
