"""Hostile models, tokenizers and adapters: each is refused in one sentence, or works.

The named ones ended a process, or never ended, before they were refused. Others are made from
seeds; some of them are tried here, many with TRUING_LONG=1.
"""

import json
import re
from pathlib import Path

import pytest
import torch
from hostile_models import hostile_copy
from launching import long
from peft import EvaConfig, LoraConfig, get_peft_model
from tiny_models import make_tiny_model

from sft.config.sections import ModelSection, Preset
from sft.errors import UserError
from sft.model.adapter_checks import check_adapters
from sft.model.loading import check_model, load_model, load_tokenizer, read_config
from sft.model.placement import choose_placement


@pytest.fixture
def base(tmp_path, tiny_tokenizer):
    folder = tmp_path / "base"
    make_tiny_model().save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(tmp_path, base):
    options = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    model = get_peft_model(make_tiny_model(), LoraConfig(r=2, **options))
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def change(folder, name, **changes):
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | changes))


def start(folder):
    """What a command does with a model before any row is read."""
    section = ModelSection(str(folder), dtype="float32")
    path = check_model(section)
    tokenizer = load_tokenizer(path, section)
    check_adapters(Preset(model=section), path, tokenizer, config=read_config(path, section))
    return path, section


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 10**9}, r"num_hidden_layers=1,000,000,000 is beyond any model's"),
        ({"hidden_size": 10**12}, "hidden_size=1,000,000,000,000 is beyond any model's"),
        ({"vocab_size": 2**40}, "vocab_size=1,099,511,627,776 is beyond any model's"),
        ({"num_attention_heads": 0}, "num_attention_heads=0 must be at least 1"),
        ({"num_hidden_layers": -3}, "num_hidden_layers=-3 must be at least 1"),
        ({"max_position_embeddings": 10**18}, "max_position_embeddings=1,000,000,000,000,000,000"),
        ({"sliding_window": 10**400}, "sliding_window=a number of over 30 digits"),
        ({"hidden_act": "x"}, "no model can be built by its config.json .*x"),
        ({"rope_parameters": "x"}, "config.json|no model could be read"),
        ({"architectures": [0]}, r"architectures='\[0\]' is no list of names"),
        ({"architectures": "a\nb"}, r"architectures='a\\nb' is no list of names"),
        ({"sliding_window": -0.5}, "sliding_window=-0.5 must be a whole number"),
        ({"sliding_window": [[[]]]}, r"sliding_window='\[\[\[\]\]\]' is neither a number nor null"),
        ({"return_dict": False}, "return_dict=false has the model return another type"),
        ({"output_hidden_states": "x"}, "output_hidden_states='x' is neither true nor false"),
        ({"output_attentions": ["x"] * 1000}, r"output_attentions=\"\['x'.{76}\" is neither"),
        ({"pad_token_id": 10**9}, "no model can be built by its config.json .*[Pp]adding"),
        ({"layer_types": [[[[]]]]}, "config.json|no model could be read"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_configuration_that_no_model_has_is_refused(base, changes, words):
    change(base, "config.json", **changes)
    with pytest.raises(UserError, match=words) as no:
        start(base)
    assert "\n" not in str(no.value)


def test_tables_over_all_positions_are_counted_before_they_are_made(base):
    """GPT-Neo keeps a mask of every position by every other: 9 TB for three million."""
    content = {"model_type": "gpt_neo", "architectures": ["GPTNeoForCausalLM"]}
    sizes = {"vocab_size": 260, "hidden_size": 32, "num_heads": 4, "num_layers": 2}
    kinds = {"attention_types": [[["global", "local"], 1]], "max_position_embeddings": 3_000_000}
    (base / "config.json").write_text(json.dumps(content | sizes | kinds))
    with pytest.raises(UserError, match=r"tables of .* GiB that are no weights .*lower"):
        start(base)


REPLACE = {"type": "Replace", "pattern": {"String": "e"}}
BOMBS = {
    "Replace": (
        {"normalizer": {"type": "Sequence", "normalizers": [REPLACE | {"content": "e" * 50}] * 9}},
        "normalizer cannot be used .*characters of one",
    ),
    "Prepend": ({"normalizer": {"type": "Prepend", "prepend": "x" * 10**6}}, "normalizer cannot"),
    "Regex": (
        {
            "pre_tokenizer": {
                "type": "Split",
                "pattern": {"Regex": "((a|a)+)+$"},
                "behavior": "Isolated",
                "invert": False,
            }
        },
        "cannot be used|^$",
    ),
    "charsmap": (
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////w==" + "A" * 64}},
        "tokenizer.json",
    ),
    "ids": (
        {
            "added_tokens": [
                {"id": 2**31, "content": "<x>", "special": True, "single_word": False}
                | {"lstrip": False, "rstrip": False, "normalized": False}
            ]
        },
        "",
    ),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_tokenizer_that_would_end_the_process_is_refused_by_a_child(base, kind):
    changes, words = BOMBS[kind]
    change(base, "tokenizer.json", **changes)
    try:
        start(base)
    except UserError as no:
        assert "\n" not in str(no)
        assert re.search(words, str(no))
    else:
        assert kind in ("Regex", "ids")  # the library may bound these itself


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target_modules": "(.*)*(.*)*(.*)*(.*)*x"}, "target_modules holds a regular expression"),
        ({"target_modules": "((((.*)+)+)+)+\\d\\d\\dx"}, "target_modules holds a regular expr"),
        ({"target_modules": "("}, "target_modules holds a regular expression that cannot be used"),
        ({"target_modules": [1]}, "target_modules='\\[1\\]' is no list of names"),
        ({"init_lora_weights": "pissa_niter_1000000000"}, "init_lora_weights='pissa_niter_1000"),
        ({"init_lora_weights": "x"}, "init_lora_weights='x' is an initialization with which no"),
        ({"bias": "some"}, "bias='some' is none of none, all and lora_only"),
        ({"trainable_token_indices": [0.5]}, r"trainable_token_indices='\[0.5\]' is no list of"),
        ({"trainable_token_indices": {"x": 3}}, "is no list of token ids"),
        ({"base_model_name_or_path": "/etc/passwd"}, r"\(its base, '/etc/passwd'\): no model"),
        ({"r": 3}, "q_proj.lora_A.weight is .2, 32., its base .* with its adapter_config.json"),
        ({"lora_bias": 3}, "lora_bias='3' is neither true nor false"),
        ({"r": 10**9}, "r='1000000000' is no rank from 1"),
        ({"r": True}, "r='True' is no rank"),
        ({"lora_alpha": "x"}, "lora_alpha='x' is no number"),
        ({"layer_replication": [[0, 10**9]]}, "sets layer_replication"),
        ({"rank_pattern": {"q_proj": 10**9}}, "rank_pattern"),
        ({"megatron_config": {"a": 1}, "megatron_core": "antigravity"}, "sets megatron_config"),
        ({"base_model_name_or_path": 3}, "names no base_model_name_or_path"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_adapter_whose_settings_are_out_of_bounds_is_refused(adapter, changes, words):
    change(adapter, "adapter_config.json", **changes)
    with pytest.raises(UserError, match=words) as no:
        start(adapter)
    assert "\n" not in str(no.value)


@pytest.mark.filterwarnings("ignore:lora with eva initialization")
@pytest.mark.parametrize("begin", [True, False, "gaussian", "orthogonal", "olora", "pissa", "eva"])
def test_an_adapter_that_began_in_any_way_that_is_done_again_computes_as_it_did(base, begin):
    """PiSSA and OLoRA take their part out of the base as they begin, so again at loading."""
    options = {"target_modules": ["q_proj"], "task_type": "CAUSAL_LM", "init_lora_weights": begin}
    if begin == "eva":
        options["eva_config"] = EvaConfig()
    model = get_peft_model(make_tiny_model(), LoraConfig(r=2, **options)).eval()
    for name, weight in model.named_parameters():
        if "lora_" in name:  # as if trained
            weight.data += 0.1
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(base.parent / "begun")
    path, section = start(base.parent / "begun")
    ids = torch.tensor([[5, 6, 7, 8]])
    found = load_model(path, choose_placement(section))(input_ids=ids).logits
    torch.testing.assert_close(found, model(input_ids=ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("content", ["", "[]", "{", "\ud800", "[" * 10**5], ids=repr)
@pytest.mark.parametrize("name", ["config.json", "adapter_config.json"])
def test_damaged_settings_are_refused(base, adapter, name, content):
    folder = base if name == "config.json" else adapter
    (folder / name).write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(UserError, match=name) as no:
        start(folder)
    assert "\n" not in str(no.value) and len(str(no.value)) < 600


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_half_characters_in_the_settings_of_a_tokenizer_are_refused(base, name):
    """No file takes them, and each stage saves these settings again."""
    (base / name).touch()
    content = json.loads((base / name).read_text() or "{}")
    (base / name).write_text(json.dumps(content | {"model_input_names": ["a", "\ud800"]}))
    with pytest.raises(UserError, match=rf"{name}: model_input_names\[1\] holds half a character"):
        start(base)


def test_files_of_settings_are_read_up_to_a_size(base):
    with (base / "config.json").open("ab") as file:
        file.truncate(2**34)  # of which the disk holds nothing
    with pytest.raises(UserError, match=r"config\.json has 16,384 MB, and such a file"):
        start(base)


def tried(good: Path, into: Path, seed: int) -> None:
    """Anything but a sentence or a model that computes fails with the seed."""
    told = hostile_copy(good, into, seed)
    try:
        path, section = start(into)
        load_model(path, choose_placement(section))
    except UserError as no:
        assert "\n" not in str(no) and len(str(no)) < 2_000, (seed, told)
    except Exception as error:
        raise AssertionError(f"seed {seed}: {told}") from error


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["base", "adapter"])
def test_models_with_one_thing_wrong_are_refused_or_work(tmp_path, request, kind):
    good = request.getfixturevalue(kind)
    for seed in range(12):
        tried(good, tmp_path / f"m{seed}", seed)


@long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["base", "adapter"])
def test_many_models_with_one_thing_wrong_are_refused_or_work(tmp_path, request, kind):
    good = request.getfixturevalue(kind)
    for seed in range(1000, 1400):
        tried(good, tmp_path / f"m{seed}", seed)
