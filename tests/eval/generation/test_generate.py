import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import make_tiny_model
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MistralConfig,
    MistralForCausalLM,
    OpenAIGPTConfig,
    TrOCRConfig,
)

from eval.generation import batch
from eval.generation.batch import sample
from eval.generation.generate import GenerationSettings, generate
from eval.generation.padding_check import supports_padding
from eval.generation.stopping import CHECK_EVERY
from sft.errors import UserError

EOS = 0


def prompts_of(count, *, seed=0, longest=20):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(4, 260, (n,), generator=generator).tolist() for n in lengths]


def greedy(model, tokenizer, prompts, **changes):
    options = {key: changes.pop(key) for key in {"progress", "max_batch_tokens"} & changes.keys()}
    chosen = GenerationSettings(**{"max_new_tokens": 40, "stop_ids": [EOS]} | changes)
    return generate(model, tokenizer, prompts, chosen, **options)


def ending_model(seed=0, **overrides):
    """A random model that likes a few tokens, EOS among them, so that some rows end early."""
    model = make_tiny_model(seed, tie_word_embeddings=False, **overrides)
    with torch.no_grad():
        model.lm_head.weight[8:] *= 0.2
    return model


SIZE = {"vocab_size": 260, "bos_token_id": None, "eos_token_id": 0, "initializer_range": 0.3}


def sliding_model():
    torch.manual_seed(0)
    return MistralForCausalLM(
        MistralConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            sliding_window=8,
            **SIZE,
        )
    )


def random_model(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.generation_config.eos_token_id = None
    return model


def test_a_model_that_counts_padding_gets_batches_of_one_length(tiny_tokenizer):
    """TrOCR's decoder takes a token's position from its place in the row."""
    config = TrOCRConfig(vocab_size=260, d_model=32, decoder_layers=2, decoder_attention_heads=4)
    model = random_model(config)
    for weight in model.parameters():
        weight.data.normal_(0, 0.2)
    assert not supports_padding(model)
    lengths = []
    model.register_forward_pre_hook(
        lambda _, args, given: lengths.append(given["input_ids"].shape), with_kwargs=True
    )
    prompts = [list(range(first, first + n)) for first, n in ((4, 3), (20, 9), (50, 3), (70, 5))]
    found = greedy(model, tiny_tokenizer, prompts, max_new_tokens=12, stop_ids=[])
    assert [shape for shape in lengths if shape[1] > 1] == [(1, 9), (1, 5), (2, 3)]
    for prompt, generation in zip(prompts, found, strict=True):
        assert generation.token_ids == plainly(model, prompt, 12)


def plainly(model, prompt, count):
    """Greedy decoding without a cache."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize(
    "config",
    [
        MambaConfig(vocab_size=260, hidden_size=32, num_hidden_layers=2),
        OpenAIGPTConfig(vocab_size=260, n_embd=32, n_layer=2, n_head=4, n_positions=128),
    ],
    ids=lambda config: config.model_type,
)
def test_a_model_that_goes_on_otherwise_with_a_cache_is_refused_by_name(config, tiny_tokenizer):
    model = random_model(config)
    refusal = rf"a '{config.model_type}' model continues differently with a KV cache"
    with pytest.raises(UserError, match=refusal):
        greedy(model, tiny_tokenizer, [[5, 6]])


def test_a_model_whose_padded_rows_are_nan_gets_batches_of_one_length():
    model = make_tiny_model()

    def spoil_padded(module, args, given, output):
        mask = given.get("attention_mask")
        if mask is not None and not mask.bool().all():
            output.logits[:] = torch.nan
        return output

    model.register_forward_hook(spoil_padded, with_kwargs=True)
    assert not supports_padding(model)


def test_attention_takes_padding():
    assert supports_padding(make_tiny_model()) and supports_padding(sliding_model())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_greedy_equals_transformers_generate_row_by_row(tiny_tokenizer, attention):
    model = ending_model()
    model.set_attn_implementation(attention)
    prompts = prompts_of(10)
    ours = greedy(model, tiny_tokenizer, prompts)
    assert {g.finish_reason for g in ours} == {"stop_id", "cap"}
    for prompt, generation in zip(prompts, ours, strict=True):
        theirs = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=40,
            do_sample=False,
            eos_token_id=EOS,
            pad_token_id=1,
        )
        assert generation.prompt_ids == prompt
        assert generation.token_ids == theirs[0, len(prompt) :].tolist()


def test_learned_positions_and_sliding_windows_decode_like_transformers(tiny_tokenizer):
    torch.manual_seed(0)
    models = [
        GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128, **SIZE)),
        sliding_model(),
    ]
    prompts = prompts_of(6)
    for model in models:
        ours = greedy(model, tiny_tokenizer, prompts, max_new_tokens=[9, 30, 30, 17, 30, 30])
        model.eval()
        for prompt, generation in zip(prompts, ours, strict=True):
            n = len(generation.token_ids)
            theirs = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=n,
                do_sample=False,
                pad_token_id=1,
            )
            assert generation.token_ids == theirs[0, len(prompt) :].tolist()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_do_not_depend_on_their_batch_mates(tiny_tokenizer, temperature):
    model = ending_model()
    prompts, seeds = prompts_of(12, seed=1), list(range(100, 112))
    together = greedy(model, tiny_tokenizer, prompts, temperature=temperature, seeds=seeds)
    split = greedy(
        model, tiny_tokenizer, prompts, temperature=temperature, seeds=seeds, max_batch_tokens=180
    )
    order = list(reversed(range(12)))
    turned = greedy(
        model,
        tiny_tokenizer,
        [prompts[i] for i in order],
        temperature=temperature,
        seeds=[seeds[i] for i in order],
    )
    assert together == split == list(reversed(turned))
    if temperature == 0:
        assert len({len(g.token_ids) for g in together}) > 3


def test_prompts_are_read_in_pieces_of_bounded_memory(tiny_tokenizer, monkeypatch):
    model = ending_model()
    prompts = [ids for seed in range(4) for ids in prompts_of(1, seed=seed, longest=400 - seed)]
    prompts += prompts_of(4, seed=9)
    whole = greedy(model, tiny_tokenizer, prompts)
    passes = []
    forward = model.forward

    def noted(**inputs):
        passes.append(inputs["input_ids"].shape)
        return forward(**inputs)

    monkeypatch.setattr(model, "forward", noted)
    monkeypatch.setattr(batch, "PREFILL_BYTES", 2**20)
    assert greedy(model, tiny_tokenizer, prompts) == whole
    widest = max(map(len, prompts))
    column = 4 * (4 * 32 + 3 * 64) + 5 * widest  # bytes: float32 activations, a row of the mask
    pieces = [rows * columns for rows, columns in passes if columns > 1]
    assert len(pieces) > 2 and max(pieces) * column <= 2**20 < len(prompts) * widest * column


@pytest.mark.parametrize("kind", ["full", "sliding"])
def test_prompts_that_begin_alike_are_answered_as_alone(tiny_tokenizer, kind):
    model = ending_model() if kind == "full" else sliding_model()
    examples = prompts_of(1, seed=5, longest=60)[0] * 10
    prompts = [examples[:80] + own for own in prompts_of(8, seed=6)]
    prompts.append(examples[:80])
    together = greedy(model, tiny_tokenizer, prompts)
    assert together == [greedy(model, tiny_tokenizer, [prompt])[0] for prompt in prompts]


def test_seeds_decide_samples(tiny_tokenizer, tiny_model):
    prompts = [[10, 11, 12]] * 3
    first, again, other = greedy(
        tiny_model, tiny_tokenizer, prompts, temperature=1.0, seeds=[7, 7, 8]
    )
    assert first == again and first.token_ids != other.token_ids
    with pytest.raises(ValueError, match="temperature 1 needs one seed for each prompt"):
        greedy(tiny_model, tiny_tokenizer, prompts, temperature=1.0)


def test_sample_follows_the_distribution_and_the_nucleus():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    uniform = torch.arange(0, 1, 1 / 4000)
    rows = logits.expand(len(uniform), 4)
    draws = sample(rows, uniform, temperature=1.0, top_p=1.0)
    assert torch.bincount(draws, minlength=4).tolist() == pytest.approx(
        [2000, 1200, 600, 200], abs=2
    )
    nucleus = sample(rows, uniform, temperature=1.0, top_p=0.75)
    assert torch.bincount(nucleus, minlength=4).tolist() == pytest.approx([2500, 1500, 0, 0], abs=2)
    sharp = sample(rows, uniform, temperature=0.01, top_p=1.0)
    assert (sharp == 0).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True), st.floats(0.05, 1))
def test_sample_never_picks_an_impossible_token(seed, uniform, top_p):
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(seed))
    logits[0, ::3] = -torch.inf
    picked = int(sample(logits, torch.tensor([uniform]), temperature=1.0, top_p=top_p))
    assert picked % 3 != 0


def letters_model(tokenizer):
    """A random model that writes lower-case letters, spaces and newlines."""
    model = make_tiny_model(2, tie_word_embeddings=False)
    letters = tokenizer("abcdefgh \n")["input_ids"]
    with torch.no_grad():
        model.lm_head.weight.mul_(0.1)
        model.lm_head.weight[letters] *= 12
    return model


def test_stop_strings_end_each_row_at_its_own_place(tiny_tokenizer):
    model, prompts = letters_model(tiny_tokenizer), prompts_of(16, seed=3)
    sampling = {"temperature": 1.0, "seeds": list(range(16))}
    free = greedy(model, tiny_tokenizer, prompts, **sampling)
    # Two-letter strings that some rows write early, some late and some never.
    stops = [free[0].text[5:7], free[1].text[20:23], free[2].text[33:36]]
    stopped = greedy(model, tiny_tokenizer, prompts, stop_strings=stops, **sampling)
    for full, cut in zip(free, stopped, strict=True):
        places = [full.text.find(s) for s in stops if s in full.text]
        if not places:
            assert cut == full
            continue
        assert cut.finish_reason == "stop_string"
        assert cut.text == full.text[: min(places)]
        # The last kept token is the one that completes the first string to be complete.
        written = [tiny_tokenizer.decode(full.token_ids[:n]) for n in range(1, 41)]
        complete = next(n for n, t in enumerate(written, 1) if any(s in t for s in stops))
        assert cut.token_ids == full.token_ids[:complete]
    reasons = [g.finish_reason for g in stopped]
    assert reasons.count("stop_string") >= 3 and "cap" in reasons


def test_a_stop_id_before_a_stop_string_wins(tiny_tokenizer):
    model, prompts = letters_model(tiny_tokenizer), [[50, 60]]
    free = greedy(model, tiny_tokenizer, prompts)[0]
    assert len(set(free.token_ids[:4])) > 1, "the row must not start with a single letter"
    stop = next(t for t in free.token_ids if t != free.token_ids[0])
    first = free.token_ids.index(stop)
    late = tiny_tokenizer.decode(free.token_ids[first : first + 2])
    ended = greedy(model, tiny_tokenizer, prompts, stop_ids=[stop], stop_strings=[late])[0]
    assert ended.finish_reason == "stop_id"
    assert ended.token_ids == free.token_ids[: first + 1]
    assert ended.text == tiny_tokenizer.decode(free.token_ids[:first])


def test_a_row_can_be_ended_by_a_judge_of_its_tokens(tiny_tokenizer, tiny_model):
    prompts = prompts_of(5)
    free = greedy(tiny_model, tiny_tokenizer, prompts)
    ended = greedy(tiny_model, tiny_tokenizer, prompts, stop_when=lambda ids: ids[0] % 2 == 0)
    for full, cut in zip(free, ended, strict=True):
        judged = full.token_ids[0] % 2 == 0 and len(full.token_ids) >= CHECK_EVERY
        assert cut.finish_reason == ("loop" if judged else full.finish_reason)
        assert cut.token_ids == (full.token_ids[:CHECK_EVERY] if judged else full.token_ids)


def test_text_leaves_out_special_tokens_and_progress_counts_rows(tiny_tokenizer):
    counts = []
    generations = greedy(ending_model(), tiny_tokenizer, prompts_of(12), progress=counts.append)
    assert sum(counts) == 12
    assert all("<|" not in g.text for g in generations)
    stopped = next(g for g in generations if g.finish_reason == "stop_id")
    assert stopped.token_ids[-1] == EOS


def test_training_mode_is_given_back_and_does_not_change_the_answer(tiny_tokenizer):
    model = make_tiny_model(attention_dropout=0.5)
    expected = greedy(model, tiny_tokenizer, [[5, 6]])
    model.train()
    assert greedy(model, tiny_tokenizer, [[5, 6]]) == expected
    assert model.training


def test_empty_prompt_is_refused(tiny_tokenizer, tiny_model):
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        greedy(tiny_model, tiny_tokenizer, [[5], []])
    assert greedy(tiny_model, tiny_tokenizer, []) == []
