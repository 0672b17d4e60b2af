"""What a machine is given, and what is refused before weights are read. Devices are faked."""

import json
from dataclasses import replace

import pytest
import torch
import transformers
from tiny_models import FAMILY, make_tiny_model

from sft.config.sections import LoraSection, ModelSection
from sft.errors import UserError
from sft.model import placement as placement_module
from sft.model.loading import check_model, load_model, load_trainable, resolve_model_path
from sft.model.placement import Placement, choose_placement
from sft.packing.layout import Document, Segment, lay_out
from sft.packing.logprobs import attention_of, log_probs, row_layout, sequence_sums
from sft.run.stage_cache import Stage


@pytest.fixture
def on_device(monkeypatch):
    """Pretend to be on a device; nothing is allocated there."""

    def pretend(kind, *, chip="", bf16=False, capabilities=None, triton=False):
        class State:
            device = torch.device(kind)
            num_processes = 1

        monkeypatch.setattr(placement_module, "PartialState", State)
        monkeypatch.setattr(placement_module, "_apple_chip", lambda: chip)
        monkeypatch.setattr(placement_module, "is_triton_available", lambda: triton)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Some GPU")
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities or {})

    return pretend


@pytest.mark.parametrize(
    ("device", "compute"),
    [
        ({"kind": "cuda", "bf16": True}, torch.bfloat16),
        ({"kind": "cuda", "bf16": False}, torch.float32),
        ({"kind": "mps", "chip": "Apple M1 Max"}, torch.float32),
        ({"kind": "mps", "chip": "Apple M2"}, torch.float32),
        ({"kind": "mps", "chip": "Apple M3 Pro"}, torch.bfloat16),
        ({"kind": "cpu", "capabilities": {"avx512_bf16": True}}, torch.bfloat16),
        ({"kind": "cpu", "capabilities": {"amx_bf16": True}}, torch.bfloat16),
        ({"kind": "cpu", "capabilities": {"avx2": True}}, torch.float32),
    ],
)
def test_bfloat16_is_used_only_where_the_hardware_has_it(on_device, device, compute):
    on_device(**device)
    placement = choose_placement(ModelSection())
    assert placement.compute == compute
    assert placement.weights == torch.float32
    named = [line.split(":")[0] for line in placement.reasons]
    assert named == ["device", "dtype", "attention", "compile"]


def test_on_cuda_no_attention_plans_anew_for_each_length(on_device, monkeypatch):
    given = []
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", given.append)
    for kind in ("cpu", "mps", "cuda"):
        on_device(kind)
        choose_placement(ModelSection())
    assert given == [False]


def test_a_dtype_that_would_be_emulated_is_refused_by_name(on_device):
    on_device("mps", chip="Apple M1")
    with pytest.raises(UserError, match=r"model\.dtype=bfloat16 is not native on mps .*M1"):
        choose_placement(ModelSection(dtype="bfloat16"))


@pytest.mark.parametrize(
    ("device", "attention", "why", "compiled"),
    [
        ({"kind": "cuda", "triton": True}, "flex", "fully masked blocks", "flex attention alone"),
        ({"kind": "cuda"}, "sdpa", "needs the package triton", "off (packed rows"),
        ({"kind": "mps", "chip": "Apple M1"}, "sdpa", "in few shapes)", "off (packed rows"),
        ({"kind": "cpu", "triton": True}, "documents", "one call per document", "off (packed rows"),
    ],
)
def test_attention_is_the_devices_fastest_and_says_why(on_device, device, attention, why, compiled):
    on_device(**device)
    placement = choose_placement(ModelSection())
    assert placement.attention == attention
    assert placement.reasons[2].startswith(f"attention: {attention} (")
    assert why in placement.reasons[2] and compiled in placement.reasons[3]
    assert choose_placement(ModelSection(attn_implementation="eager")).attention == "eager"


@pytest.mark.parametrize("device", [{"kind": "cuda"}, {"kind": "cpu", "triton": True}])
def test_flex_attention_where_there_is_none_is_refused_by_name(on_device, device):
    on_device(**device)
    with pytest.raises(UserError, match=r"attn_implementation=flex needs CUDA and .* triton"):
        choose_placement(ModelSection(attn_implementation="flex"))


PLACEMENT = Placement(torch.device("cpu"), torch.float32, torch.bfloat16, "sdpa", ())


def test_under_lora_frozen_weights_are_bf16_and_trained_ones_float32(tmp_path):
    make_tiny_model().save_pretrained(tmp_path)
    model = load_trainable(
        str(tmp_path), PLACEMENT, lora=LoraSection(r=4), seed=0, trust_remote_code=False
    )
    kinds = {(p.requires_grad, p.dtype) for p in model.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)


def test_an_adapter_is_gone_on_with_and_loads_over_its_base(tmp_path):
    make_tiny_model().save_pretrained(tmp_path / "base")
    options = {"lora": LoraSection(r=4), "seed": 0, "trust_remote_code": False}
    first = load_trainable(str(tmp_path / "base"), PLACEMENT, **options)
    with torch.no_grad():
        for name, parameter in first.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.5)
    first.save_pretrained(tmp_path / "adapter")
    again = load_trainable(str(tmp_path / "adapter"), PLACEMENT, **options)
    for (name, a), b in zip(first.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b) and a.requires_grad == b.requires_grad, name
    measured = load_model(str(tmp_path / "adapter"), PLACEMENT)
    tokens = torch.arange(4, 20)[None]
    with torch.no_grad():
        adapted = measured(tokens).logits
        with measured.disable_adapter():
            assert not torch.allclose(measured(tokens).logits, adapted)


def test_models_that_cannot_be_used_are_refused_before_loading(tmp_path, tiny_model):
    tiny_model.save_pretrained(tmp_path / "ok")
    assert check_model(ModelSection(str(tmp_path / "ok"))) == str(tmp_path / "ok")

    config = json.loads((tmp_path / "ok" / "config.json").read_text())
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "t5"}))
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text(json.dumps(config))
    (tmp_path / "pickled" / "pytorch_model.bin").touch()
    (tmp_path / "file").touch()
    for name, words in (
        ("bert", "not a causal language model"),
        ("pickled", "pytorch_model.bin, a pickle, which is not loaded; convert it once"),
        ("file", "is a file"),
        ("missing", "no such directory"),
    ):
        with pytest.raises(UserError, match=words):
            check_model(ModelSection(str(tmp_path / name)))


def config_of(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ({"model_type": "bert"}, "an encoder whose tokens see what follows them"),
        ({"model_type": "bart"}, "is a 'bart' model, not a causal language model"),
        ({"architectures": ["LlamaForTokenClassification"]}, "whose head is not over the vocab"),
        (
            {"num_attention_heads": 5},
            r"\(The hidden size \(32\) is not a multiple of the number of",
        ),
        ({"hidden_size": "32"}, "'hidden_size' expected int.*correct its config.json"),
        (
            {"model_type": "own", "auto_map": {"AutoConfig": "a.Config"}},
            "brings its own code.*set model.trust_remote_code=true",
        ),
    ],
)
def test_a_configuration_of_no_causal_lm_is_one_sentence(harm, words, tmp_path, tiny_model):
    tiny_model.save_pretrained(tmp_path)
    config_of(tmp_path, **{"architectures": None} | harm)
    with pytest.raises(UserError, match=words) as caught:
        check_model(ModelSection(str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_whole_are_found_by_their_headers(tmp_path, tiny_model):
    def told(words):
        with pytest.raises(UserError, match=words) as caught:
            check_model(ModelSection(str(tmp_path)))
        assert "\n" not in str(caught.value)

    tiny_model.save_pretrained(tmp_path, max_shard_size="40KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1 and check_model(ModelSection(str(tmp_path))) == str(tmp_path)
    whole = shards[1].read_bytes()
    shards[1].write_bytes(whole[:-1])
    told(f"{shards[1].name} is cut off or damaged .*; fetch it again")
    shards[1].write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    told("is Git's pointer to the weights, not the weights; run `git lfs pull`")
    shards[1].unlink()
    told("is named by the model's index and is not there")
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    told("is no index of weights")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 3}, r"lack 9 of the weights of a LlamaForCausalLM \(model.layers.2"),
        ({"tie_word_embeddings": False}, r"lack 1 of the weights .*\(lm_head.weight\)"),
        ({"intermediate_size": 96}, r"is \(32, 64\) in the file and \(32, 96\) by config.json"),
    ],
)
def test_no_weight_is_ever_begun_at_random(changes, words, tmp_path, tiny_model):
    tiny_model.save_pretrained(tmp_path)
    config_of(tmp_path, **changes)
    with pytest.raises(UserError, match=words):
        load_model(str(tmp_path), PLACEMENT)


SHAPE = FAMILY | {"head_dim": 8, "initializer_range": 0.2}
# Caps on scores and on logits, windows on every layer or on some, norms on queries and keys, learnt
# positions with dropout, heads of their own or tied to the embeddings, sinks.
FAMILIES = {
    "Gemma2": {"sliding_window": 3, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 2.0},
    "Gemma3Text": {
        "sliding_window": 3,
        "layer_types": ["sliding_attention", "full_attention"],
        "final_logit_softcapping": 2.0,
    },
    "Mistral": {"sliding_window": 3},
    "Qwen3": {"tie_word_embeddings": True},
    "GPT2": {},
    "Llama": {"tie_word_embeddings": False},
    "GptOss": {"sliding_window": 3, "num_local_experts": 4},
}
EAGER = ("Gemma2", "GptOss")  # sdpa knows neither caps on scores nor sinks


@pytest.mark.parametrize("attention", ["documents", "sdpa"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_loaded_so_that_packed_rows_score_as_eager_does(
    name, attention, tmp_path, caplog
):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SHAPE | FAMILIES[name])
    kind = transformers.AutoModelForCausalLM
    plain = kind.from_config(config, attn_implementation="eager").eval()
    plain.save_pretrained(tmp_path)
    placement = replace(PLACEMENT, attention=attention, compute=torch.float32)
    with caplog.at_level("INFO"):
        model = load_model(str(tmp_path), placement)
    assert attention_of(model) == ("eager" if name in EAGER else attention)
    assert ("is not made for sdpa" in caplog.text) == (name in EAGER)
    assert row_layout(model) != "separate"

    lot = torch.Generator().manual_seed(1)
    trunk, first, second = (torch.randint(3, 260, (n,), generator=lot).tolist() for n in (9, 6, 4))
    branches = tuple(Segment(ids, [True] * len(ids)) for ids in (first, second))
    pair = Document(Segment(trunk, [False] * 9), branches)
    batch = lay_out([pair, pair], packing=True, rows=row_layout(model))
    with torch.no_grad():
        sums = sequence_sums(log_probs(model, batch), batch)
        for total, answer in zip(sums, 2 * [first, second], strict=True):
            tokens = torch.tensor([trunk + answer])
            logits = plain(input_ids=tokens).logits[0, 8:-1].log_softmax(-1)
            alone = logits.gather(1, tokens[0, 9:, None]).sum()
            torch.testing.assert_close(total, alone, rtol=1e-5, atol=1e-4)


def test_the_directory_of_a_run_means_the_last_model_that_the_run_kept(tmp_path, tiny_model):
    run = tmp_path / "run"
    run.mkdir()
    (run / "preset.yaml").touch()
    with pytest.raises(UserError, match="run with no finished stage that was kept; start its comm"):
        resolve_model_path(str(run))
    for place in ("1-sft-all", "2-sft-dialogue", "3-dpo"):
        tiny_model.save_pretrained(run / place / "model")
    for place in ("1-sft-all", "2-sft-dialogue"):
        Stage(run / place, {}).finish(outputs=["model"], facts={})
    assert resolve_model_path(str(run)) == str(run / "2-sft-dialogue" / "model")
    decision = {"stage": "sft-dialogue", "verdict": "set aside", "reason": "worse"}
    (run / "decisions.json").write_text(json.dumps([decision]))
    assert resolve_model_path(str(run)) == str(run / "1-sft-all" / "model")
    assert check_model(ModelSection(str(run))) == str(run / "1-sft-all" / "model")
    # An export carries the preset of its run and is a model itself.
    tiny_model.save_pretrained(tmp_path / "export")
    (tmp_path / "export" / "preset.yaml").touch()
    assert resolve_model_path(str(tmp_path / "export")) == str(tmp_path / "export")
