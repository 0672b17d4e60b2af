"""Added tokens: one id each, a row each, trained in every way of training, saved and loaded."""

import json
from pathlib import Path

import pytest
import torch
from chat_templates import CHATML, make_tokenizer
from tiny_models import make_tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from sft.chat_template.encoding import encode_chat, stop_ids
from sft.config.sections import LoraSection, ModelSection
from sft.context import RunContext
from sft.errors import UserError
from sft.export.merge import merge_before_stage
from sft.model.loading import load_model, load_tokenizer, load_trainable, save_model
from sft.model.placement import Placement
from sft.model.vocabulary import base_with_tokens, token_rows
from sft.packing.equivalence import packing_mismatch
from sft.packing.layout import Document, Segment, pack
from sft.packing.logprobs import log_probs

TOKENS = ["<|im_start|>", "<|im_end|>"]
FLOAT = Placement(torch.device("cpu"), torch.float32, torch.float32, "sdpa", ())
HALF = Placement(torch.device("cpu"), torch.float32, torch.bfloat16, "sdpa", ())
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def base(request, tmp_path):
    """A base model without a template, whose vocabulary lacks ChatML's tokens."""
    tokenizer = make_tokenizer("", eos="<|endoftext|>")
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "base")
    model = make_tiny_model(vocab_size=len(tokenizer), tie_word_embeddings=request.param)
    model.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def section(base):
    return ModelSection(base, chat_template=CHATML, add_tokens=TOKENS)


@pytest.fixture
def grown(base, tmp_path):
    """The tokenizer with the tokens, and the base with a row for each."""
    tokenizer = load_tokenizer(base, section(base))
    return tokenizer, base_with_tokens(base, section(base), tokenizer, run=tmp_path / "run")


def rows_of(model, ids):
    matrices = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    return [m[list(ids)].detach().float().clone() for m in matrices]


def train(model, tokenizer, steps=3):
    chat = encode_chat(tokenizer, CHAT)
    batch = pack([Document(Segment(chat.input_ids, chat.trained))], row_length=64)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        (-log_probs(model, batch).sum()).backward()
        optimizer.step()
    return batch


def test_without_the_tokens_the_template_is_refused_and_says_what_to_do(base):
    with pytest.raises(
        UserError, match=r"does not end .*name its end-of-turn in model\.add_tokens"
    ):
        load_tokenizer(base, ModelSection(base, chat_template=CHATML))


def test_a_token_is_one_id_and_ends_a_turn(base):
    plain = AutoTokenizer.from_pretrained(base)
    tokenizer = load_tokenizer(base, section(base))
    ids = tokenizer.convert_tokens_to_ids(TOKENS)
    assert ids == [len(plain), len(plain) + 1]
    assert len(plain("<|im_end|>")["input_ids"]) > 1
    assert stop_ids(tokenizer)[0] == ids[1]
    assert tokenizer.convert_ids_to_tokens(encode_chat(tokenizer, CHAT).input_ids)[0] == TOKENS[0]


def test_a_token_beyond_the_embeddings_is_refused_or_given_one(base, tmp_path):
    rows = AutoConfig.from_pretrained(base).vocab_size
    settings = Path(base) / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"pad_token": "<|beyond|>"}))
    with pytest.raises(UserError, match=rf"pad_token <\|beyond\|> is number {rows}, and the model"):
        load_tokenizer(base, ModelSection(base))
    own = ModelSection(base, add_tokens=["<|beyond|>"])
    tokenizer = load_tokenizer(base, own)
    grown = base_with_tokens(base, own, tokenizer, run=tmp_path / "run")
    assert AutoConfig.from_pretrained(grown).vocab_size == rows + 1
    assert load_tokenizer(grown, ModelSection(grown)).pad_token_id == rows


def test_a_tokenizer_of_another_model_is_refused(base):
    config = Path(base) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": 100}))
    with pytest.raises(UserError, match="tokens and the model embeddings for 100; give the token"):
        load_tokenizer(base, ModelSection(base))


def test_new_rows_are_the_mean_and_nothing_else_moves(base, grown, tmp_path):
    tokenizer, path = grown
    before = AutoModelForCausalLM.from_pretrained(base)
    after = AutoModelForCausalLM.from_pretrained(path)
    size = before.config.vocab_size
    assert after.config.vocab_size == size + 2
    for old, new in zip(rows_of(before, range(size)), rows_of(after, range(size + 2)), strict=True):
        assert torch.equal(new[:size], old)
        assert torch.allclose(new[size:], old.mean(0).expand(2, -1), atol=1e-6)
    marker = (tmp_path / "run/base/done.json").stat().st_mtime_ns
    assert base_with_tokens(base, section(base), tokenizer, run=tmp_path / "run") == path
    assert (tmp_path / "run/base/done.json").stat().st_mtime_ns == marker


@pytest.mark.parametrize("r", [0, 4], ids=["full", "lora"])
def test_rows_change_in_training_and_are_saved_and_loaded(r, grown, tmp_path):
    tokenizer, path = grown
    ids = tokenizer.convert_tokens_to_ids(TOKENS)
    others = [i for i in range(len(tokenizer)) if i not in ids]
    start = load_model(path, FLOAT)
    model = load_trainable(
        path, FLOAT, lora=LoraSection(r=r), seed=0, trust_remote_code=False, tokens=ids
    )
    batch = train(model, tokenizer)
    for name, before, after in zip(
        ("embedding", "head"), rows_of(start, ids), rows_of(model, ids), strict=True
    ):
        # <|im_start|> is read and never said: its row of an untied head moves by the softmax.
        assert (before - after).abs().amax(1).min() > 0, name
    if r:
        for before, after in zip(rows_of(start, others), rows_of(model, others), strict=True):
            assert torch.equal(before, after), "other embeddings stay frozen"
    save_model(model, tokenizer, tmp_path / "saved")
    again = load_model(str(tmp_path / "saved"), FLOAT)
    for before, after in zip(rows_of(model, ids), rows_of(again, ids), strict=True):
        assert torch.equal(before, after)
    model.eval()
    with torch.no_grad():
        assert torch.equal(log_probs(model, batch), log_probs(again.eval(), batch))
    if r:
        size = (tmp_path / "saved/adapter_model.safetensors").stat().st_size
        assert size < (tmp_path / "run/base/model/model.safetensors").stat().st_size / 2
        config = json.loads((tmp_path / "saved/adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == path


def test_the_next_stage_goes_on_with_the_rows_of_the_one_before(grown, tmp_path):
    tokenizer, path = grown
    ids = tokenizer.convert_tokens_to_ids(TOKENS)
    options = {"lora": LoraSection(r=4), "seed": 0, "trust_remote_code": False, "tokens": ids}
    first = load_trainable(path, FLOAT, **options)
    train(first, tokenizer)
    save_model(first, tokenizer, tmp_path / "one")
    second = load_trainable(str(tmp_path / "one"), FLOAT, **options)
    before = rows_of(second, ids)
    assert all(torch.equal(a, b) for a, b in zip(before, rows_of(first, ids), strict=True))
    train(second, tokenizer)
    for old, new in zip(before, rows_of(second, ids), strict=True):
        assert not torch.equal(old, new)


@pytest.mark.parametrize("dora", [False, True])
def test_between_stages_the_rows_are_merged_too_and_trained_again(grown, tmp_path, dora):
    tokenizer, path = grown
    ids = tokenizer.convert_tokens_to_ids(TOKENS)
    lora = LoraSection(r=4, use_dora=dora)
    options = {"lora": lora, "seed": 0, "trust_remote_code": False, "tokens": ids}
    first = load_trainable(path, FLOAT, **options)
    train(first, tokenizer)
    save_model(first, tokenizer, tmp_path / "one")
    context = RunContext(tmp_path, tokenizer, FLOAT, lora, 0, False, tuple(ids))
    text = encode_chat(tokenizer, CHAT).input_ids
    one = str(tmp_path / "one")
    start = merge_before_stage(one, context, folder=tmp_path / "start", rows=[text])
    second = load_trainable(start, FLOAT, **options)
    merged = rows_of(second, ids)
    for a, b in zip(merged, rows_of(first, ids), strict=True):
        torch.testing.assert_close(a, b)
    train(second, tokenizer)
    assert not any(torch.equal(a, b) for a, b in zip(merged, rows_of(second, ids), strict=True))


def test_under_bfloat16_the_rows_are_float32_and_packing_still_holds(grown):
    tokenizer, path = grown
    ids = tokenizer.convert_tokens_to_ids(TOKENS)
    model = load_trainable(
        path, HALF, lora=LoraSection(r=4), seed=0, trust_remote_code=False, tokens=ids
    )
    kinds = {(p.requires_grad, p.dtype) for p in model.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    assert next(model.parameters()).dtype == torch.bfloat16  # decides how exact packing must be
    assert packing_mismatch(model) is None


def test_no_copy_is_made_where_no_token_is_new(base, tmp_path):
    own = ModelSection(base, add_tokens=["<|endoftext|>"])
    tokenizer = load_tokenizer(base, own)
    assert base_with_tokens(base, own, tokenizer, run=tmp_path / "run") == base
    assert not (tmp_path / "run").exists()
    eos = tokenizer.eos_token_id
    model = load_trainable(
        base, FLOAT, lora=LoraSection(r=4), seed=0, trust_remote_code=False, tokens=[eos]
    )
    before = rows_of(model, [eos])
    train(model, tokenizer)
    assert not torch.equal(before[1], rows_of(model, [eos])[1])


def test_our_own_template_takes_the_tokens_that_were_added(base):
    tokenizer = load_tokenizer(base, ModelSection(base, add_tokens=TOKENS))
    assert "<|im_start|>" in tokenizer.chat_template
    ids = tokenizer.convert_tokens_to_ids(TOKENS)
    assert [i for i in encode_chat(tokenizer, CHAT).input_ids if i in ids] == [*ids, *ids]


def test_a_head_with_a_bias_is_refused(base):
    model = load_model(base, FLOAT)
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(model.config.vocab_size))
    with pytest.raises(UserError, match="head has a bias"):
        token_rows(model, [1])


def test_an_adapter_has_no_embeddings_to_add_to(base, tmp_path):
    tokenizer = load_tokenizer(base, section(base))
    model = load_trainable(base, FLOAT, lora=LoraSection(r=2), seed=0, trust_remote_code=False)
    model.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match="is an adapter"):
        base_with_tokens(str(tmp_path / "adapter"), section(base), tokenizer, run=tmp_path / "run")
