"""Adapters of every kind of PEFT's, sound and with one thing wrong: what is loaded computes as it
was trained to, and all else is refused in one sentence.

Some seeds are tried here, many with TRUING_LONG=1.
"""

import json
import random
import re
from pathlib import Path

import pytest
import torch
from hostile_adapters import IDS, LORA, OTHERS, REFUSED_LORA, make_wrong, save_adapter
from launching import long
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_models import make_tiny_model, make_tiny_tokenizer
from transformers import AutoModelForCausalLM

from sft.config.sections import ModelSection, Preset
from sft.errors import UserError
from sft.model.adapter_checks import check_adapters
from sft.model.loading import check_model, load_model, load_tokenizer, read_config
from sft.model.placement import choose_placement

pytestmark = pytest.mark.filterwarnings("ignore")
KINDS = [*LORA, *REFUSED_LORA, *OTHERS]


@pytest.fixture
def base(tmp_path, monkeypatch):
    folder = tmp_path / "base"
    make_tiny_model().save_pretrained(folder)
    make_tiny_tokenizer().save_pretrained(folder)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


def logits_of(folder: Path) -> torch.Tensor:
    """Of `IDS`, of a model that is checked and loaded as a command does."""
    section = ModelSection(str(folder), dtype="float32")
    path = check_model(section)
    tokenizer = load_tokenizer(path, section)
    check_adapters(Preset(model=section), path, tokenizer, config=read_config(path, section))
    with torch.no_grad():
        return load_model(path, choose_placement(section))(input_ids=IDS).logits


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as no:
        logits_of(folder)
    assert "\n" not in str(no.value) and len(str(no.value)) < 2_000
    return str(no.value)


@pytest.mark.parametrize("kind", LORA)
def test_an_adapter_of_any_kind_of_lora_computes_as_it_was_trained_to(base, tmp_path, kind):
    trained = save_adapter(kind, tmp_path / "adapter", base=base)
    torch.testing.assert_close(logits_of(tmp_path / "adapter"), trained, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [*REFUSED_LORA, *OTHERS])
def test_an_adapter_of_another_kind_is_refused_with_a_way_on(base, tmp_path, kind):
    save_adapter(kind, tmp_path / "adapter", base=base)
    said = refusal(tmp_path / "adapter")
    assert said.startswith(f"model.name_or_path={tmp_path / 'adapter'}")
    assert "peft first, where peft can, or train" in said or "merge_and_unload(), or train" in said


@pytest.mark.parametrize("kind", ["pissa, approximate", "lora-ga"])
def test_an_adapter_that_peft_loads_with_other_logits_is_refused(base, tmp_path, kind):
    """PEFT itself loads both without a word."""
    trained = save_adapter(kind, tmp_path / "adapter", base=base)
    if kind == "lora-ga":  # as its preparation leaves the base: without the adapter's first product
        weights = load_file(base / "model.safetensors")
        name = "model.layers.0.self_attn.q_proj.weight"
        save_file(weights | {name: weights[name] + 0.1}, base / "model.safetensors")
    by_peft = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter"
    )
    with torch.no_grad():
        assert (by_peft(input_ids=IDS).logits - trained).abs().max() > 0.05
    said = refusal(tmp_path / "adapter")
    assert "init_lora_weights=" in said and "path_initial_model_for_weight_conversion" in said


Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop(Q), r"lack .*lora_A.default.weight' \(1 such\), which would stay as"),
        (
            lambda w: w.update({Q.replace(".0.", ".7."): w[Q].clone()}),
            r"hold .*layers.7.*which nothing",
        ),
        (lambda w: w[Q].__setitem__((0, 0), torch.nan), "hold values that are not finite"),
        (lambda w: w.update({Q: w[Q].to(torch.int8)}), "holds numbers of type I8, .* unquantized"),
        (lambda w: w.update({Q: w[Q][:1].clone()}), r"q_proj.lora_A.weight is \[1, 32\]"),
    ],
    ids=["lacks one", "one more", "NaN", "integers", "another shape"],
)
def test_weights_that_are_not_those_of_the_adapter_are_refused(base, tmp_path, change, words):
    """PEFT leaves what is lacking as it began, at random, and what is more out."""
    save_adapter("lora", tmp_path / "adapter", base=base)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file)
    said = refusal(tmp_path / "adapter")
    assert re.search(words, said)
    assert "default.default" not in said


@pytest.mark.parametrize("kind", ["whole norm", "tokens"])
def test_modules_and_tokens_that_the_weights_lack_are_named(base, tmp_path, kind):
    save_adapter(kind, tmp_path / "adapter", base=base)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    kept = {name: w for name, w in load_file(file).items() if "lora_" in name}
    save_file(kept, file)
    named = {"whole norm": "input_layernorm", "tokens": "embed_tokens"}[kind]
    assert re.search(f"its weights lack .*{named}.*the base that it was", refusal(file.parent))


def test_an_adapter_over_a_name_that_is_too_long_is_refused(base, tmp_path):
    save_adapter("lora", tmp_path / "adapter", base=base)
    file = tmp_path / "adapter" / "adapter_config.json"
    settings = json.loads(file.read_text()) | {"base_model_name_or_path": "x" * 5000}
    file.write_text(json.dumps(settings))
    said = refusal(tmp_path / "adapter")
    assert re.search("base_model_name_or_path='x{80}' cannot be read .*too long", said)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_with_weights_that_are_not_finite_is_refused(base, tmp_path, value):
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][3] = value
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    words = f"model.name_or_path={base}: its weights 'model.norm.weight' hold values that are not"
    assert words in refusal(base)
    save_adapter("pissa", tmp_path / "adapter", base=base)
    assert words in refusal(tmp_path / "adapter")


def tried(base: Path, into: Path, seed: int) -> None:
    """Anything but the right outcome fails with the seed."""
    chance = random.Random(seed)
    kind = chance.choice((*(list(LORA) * 3), *KINDS))
    trained = save_adapter(kind, into, base=base, seed=seed)
    told, due = make_wrong(into, chance)
    case = f"seed {seed}: {kind}: {told}"
    try:
        found = logits_of(into)
    except UserError as no:
        assert "\n" not in str(no) and len(str(no)) < 2_000, case
        assert due is not False or kind not in LORA, f"{case}: {no}"
    except Exception as error:
        raise AssertionError(case) from error
    else:
        assert due is not True and kind in LORA, f"{case}: is accepted"
        assert found.isfinite().all(), case
        if due is False:
            torch.testing.assert_close(found, trained, atol=1e-4, rtol=1e-4)
    assert not list(Path.cwd().iterdir()), case


def test_adapters_with_one_thing_wrong_are_refused_or_work(base, tmp_path):
    for seed in range(40):
        tried(base, tmp_path / f"a{seed}", seed)


@long
def test_many_adapters_with_one_thing_wrong_are_refused_or_work(base, tmp_path):
    for seed in range(1000, 1800):
        tried(base, tmp_path / f"a{seed}", seed)
