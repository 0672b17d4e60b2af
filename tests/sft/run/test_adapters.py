"""Adapters by closed form: rsLoRA's scale, DoRA's lengths, merging between stages, moved runs."""

import json
import math
import shutil
import warnings

import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import make_tiny_model, make_tiny_tokenizer
from tiny_world import build_world, foreign_files
from transformers import AutoModelForCausalLM, GenerationConfig

from recipes.export import main as export
from recipes.sft_then_dpo import main as train
from sft.chat_template.encoding import stop_ids
from sft.chat_template.template import ensure_template
from sft.config.sections import LoraSection, ModelSection, Preset
from sft.context import RunContext
from sft.errors import UserError
from sft.export import merge
from sft.model.chat_models import is_chat_model
from sft.model.flops import costs_of_config
from sft.model.loading import (
    check_model,
    has_template,
    load_model,
    load_tokenizer,
    load_trainable,
    save_model,
)
from sft.model.lora_targets import lora_config
from sft.model.placement import Placement
from sft.packing.layout import Document, Segment, lay_out, pack
from sft.packing.logprobs import log_probs
from sft.planning.stages import check_sft
from sft.planning.step_memory import Setup, step_memory
from sft.run.adapters import adapter_base, portable_hash
from sft.run.console import print_summary
from sft.run.fingerprint import model_fingerprint
from sft.system.atomic_files import read_json, read_jsonl

FLOAT = Placement(torch.device("cpu"), torch.float32, torch.float32, "sdpa", ())
OPTIONS = {"seed": 0, "trust_remote_code": False}
IDS = list(range(4, 60))
BATCH = pack([Document(Segment(IDS, [False] + [True] * 55))], row_length=64)


@pytest.fixture
def base(tmp_path):
    make_tiny_model().save_pretrained(tmp_path / "base")
    tokenizer = make_tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "base")
    ensure_template(tokenizer)
    return str(tmp_path / "base"), tokenizer


def adapted(path, lora, tokens=()):
    """A trainable model whose adapter is anything but zero, as after training."""
    model = load_trainable(path, FLOAT, lora=lora, tokens=tokens, **OPTIONS)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("lora_B", "magnitude", "tokens_delta")):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("stabilized", [False, True])
def test_merged_weights_are_those_of_the_papers(base, tmp_path, dora, stabilized):
    """LoRA: W + s BA, s = alpha / r; rsLoRA: s = alpha / sqrt(r); DoRA: m (W + sBA) / |W + sBA|."""
    path, tokenizer = base
    lora = LoraSection(r=4, lora_alpha=6, use_dora=dora, use_rslora=stabilized)
    model = adapted(path, lora)
    module = model.get_submodule("base_model.model.model.layers.1.mlp.down_proj")
    product = module.lora_B["default"].weight @ module.lora_A["default"].weight
    wanted = module.base_layer.weight + 6 / (math.sqrt(4) if stabilized else 4) * product
    if dora:
        lengths = module.lora_magnitude_vector["default"].weight
        wanted = lengths[:, None] * wanted / wanted.norm(dim=1, keepdim=True)
    save_model(model, tokenizer, tmp_path / "adapter")
    with torch.no_grad():  # transformers 5.23 itself reads a DoRA adapter without its lengths
        again = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
        ids = torch.tensor([IDS])
        torch.testing.assert_close(again(ids).logits, model(ids).logits)
    trained = merge.TrainedModel(str(tmp_path / "adapter"), path, [IDS], FLOAT)
    folder = tmp_path / "whole"
    check = merge.export_weights(trained, tokenizer, folder=folder, dtype=torch.float32)
    assert check.share < 1e-4 and check.changed > 0.05
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    found = whole.get_submodule("model.layers.1.mlp.down_proj").weight
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-5, atol=1e-5)


def test_dora_begins_as_the_base_and_its_lengths_are_planned_for(base):
    path, _ = base
    plain, dora = LoraSection(r=4), LoraSection(r=4, use_dora=True)
    new, start = (load_trainable(path, FLOAT, lora=dora, **OPTIONS), load_model(path, FLOAT))
    with torch.no_grad():
        torch.testing.assert_close(log_probs(new, BATCH), log_probs(start, BATCH))
    rows = sum(m.out_features for m in start.modules() if type(m) is torch.nn.Linear)
    rows -= start.config.vocab_size
    config = start.config
    more = [
        costs_of_config(config, lora=lora_config(x)).parameters.trainable for x in (plain, dora)
    ]
    assert more[1] - more[0] == rows
    batch = lay_out([Document(Segment(IDS, [False] + [True] * 55))], packing=True, rows="masked")
    memory = [
        step_memory(config, batch, Setup(lora_config(x), torch.float32, torch.float32, "sdpa"))
        for x in (plain, dora)
    ]
    assert memory[1].optimizer - memory[0].optimizer == 8 * rows
    assert memory[1].activations > memory[0].activations  # whole matrices, for their lengths


def context(tmp_path, tokenizer, lora):
    return RunContext(tmp_path / "run", tokenizer, FLOAT, lora, 0, False)


def test_an_adapter_merged_and_begun_anew_trains_as_the_one_that_goes_on(base, tmp_path):
    """With A the same and held, B counts from where it was or from zero: (B1 + B) A = B1 A + B A,
    so gradients, and Adam's steps from empty moments, are the same."""
    path, tokenizer = base
    lora = LoraSection(r=4)
    save_model(adapted(path, lora), tokenizer, tmp_path / "one")
    one = str(tmp_path / "one")
    start = merge.merge_before_stage(
        one, context(tmp_path, tokenizer, lora), folder=tmp_path / "start", rows=[IDS]
    )
    on = load_trainable(one, FLOAT, lora=lora, **OPTIONS)
    anew = load_trainable(start, FLOAT, lora=lora, **OPTIONS)
    ours = dict(on.named_parameters())
    with torch.no_grad():
        before = log_probs(anew, BATCH)
        torch.testing.assert_close(before, log_probs(on, BATCH), rtol=1e-4, atol=1e-4)
        with anew.disable_adapter():  # the reference of a preference stage
            assert torch.equal(before, log_probs(anew, BATCH))
        for name, parameter in anew.named_parameters():
            if "lora_A" in name:
                parameter.copy_(ours[name])
    for model in (on, anew):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_B" in name)
    followed = [trajectory(model) for model in (on, anew)]
    assert followed[0][-1] < followed[0][0] - 0.5
    assert followed[1] == pytest.approx(followed[0], rel=1e-3)


def trajectory(model, steps=6):
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = -log_probs(model, BATCH).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_merging_is_done_once_and_refused_where_rounding_swallows_it(base, tmp_path):
    path, tokenizer = base
    lora = LoraSection(r=4)
    save_model(adapted(path, lora), tokenizer, tmp_path / "one")
    here = context(tmp_path, tokenizer, lora)
    made = merge.merge_before_stage(
        str(tmp_path / "one"), here, folder=tmp_path / "start", rows=[IDS]
    )
    facts = read_json(tmp_path / "start" / "done.json")["facts"]
    assert facts["lost"] < 1e-4 < facts["changed"]
    stamp = (tmp_path / "start" / "done.json").stat().st_mtime_ns
    again = merge.merge_before_stage(
        str(tmp_path / "one"), here, folder=tmp_path / "start", rows=[]
    )
    assert again == made and (tmp_path / "start" / "done.json").stat().st_mtime_ns == stamp
    little = adapted(path, lora)
    with torch.no_grad():
        for name, parameter in little.named_parameters():
            if "lora_B" in name:
                parameter.mul_(1e-3)
    save_model(little, tokenizer, tmp_path / "two")
    half = Placement(torch.device("cpu"), torch.float32, torch.bfloat16, "sdpa", ())
    rounded = RunContext(tmp_path, tokenizer, half, lora, 0, False)
    with pytest.raises(UserError, match=r"set lora\.between_stages=continue or model\.dtype"):
        merge.merge_before_stage(str(tmp_path / "two"), rounded, folder=tmp_path / "s", rows=[IDS])
    assert not (tmp_path / "s" / "done.json").exists()


def test_a_chain_of_merged_bases_is_measured_skipped_exported_and_moved(tmp_path, capsys):
    world = build_world(tmp_path / "w", make_tiny_tokenizer(), num_train_epochs=2)
    options = ["lora.r=4", "lora.between_stages=merge", "eval.repetition.prompts=null"]
    options += ["eval.limit=2", "lora.use_rslora=true"]

    def run(*more):
        return train([str(world / "preset.yaml"), *options, *more])

    assert run() == 0
    home = world / "run"
    assert foreign_files(home) == []
    models = [home / place / "model" for place in ("1-sft-all", "2-sft-dialogue", "3-dpo")]
    bases = [read_json(m / "adapter_config.json")["base_model_name_or_path"] for m in models]
    assert bases == [str(world / "base"), *(str(m.parent / "start" / "model") for m in models[1:])]
    first = read_jsonl(home / "3-dpo" / "log.jsonl")[0]
    assert abs(first["rewards/margins"]) < 1e-4 and first["loss"] == pytest.approx(0.6931, abs=1e-3)
    ids = torch.tensor([IDS])
    with torch.no_grad():
        answers = [AutoModelForCausalLM.from_pretrained(m)(ids).logits for m in models]
        start = AutoModelForCausalLM.from_pretrained(bases[1])(ids).logits
    torch.testing.assert_close(start, answers[0], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(answers[1], start, atol=1e-2)

    before = {m: (m.parent / "done.json").stat().st_mtime_ns for m in models}
    new = tmp_path / "elsewhere" / "run"
    new.parent.mkdir()
    shutil.move(home, new)
    assert adapter_base(new / "3-dpo" / "model") == str(new / "3-dpo" / "start" / "model")
    assert export([str(new), "--to", str(tmp_path / "out")]) == 0
    with torch.no_grad():
        whole = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(ids).logits
    torch.testing.assert_close(whole, answers[2], rtol=1e-3, atol=1e-3)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "rank-stabilized LoRA of rank 4, a new one in each stage" in card.replace("\\-", "-")

    assert run(f"run.dir={new}") == 0
    for old in models:
        model = new / old.relative_to(home)
        assert (model.parent / "done.json").stat().st_mtime_ns == before[old], "was trained again"
        assert str(home) not in (model / "adapter_config.json").read_text()
    with torch.no_grad():
        again = AutoModelForCausalLM.from_pretrained(new / "3-dpo" / "model")(ids).logits
    assert torch.equal(again, answers[2])
    # A merged base that is gone is made again, and what was trained over it stays.
    shutil.rmtree(new / "3-dpo" / "start")
    assert run(f"run.dir={new}") == 0
    assert (new / "3-dpo/done.json").stat().st_mtime_ns == before[models[2]]
    assert run(f"run.dir={new}", "lora.between_stages=continue") == 2
    assert "lora.between_stages" in capsys.readouterr().err


def test_the_end_of_a_run_prints_commands_that_work_for_the_model(base, tmp_path, capsys):
    """`transformers serve` and `chat` load whole models alone: an adapter is exported first."""
    path, _ = base
    print_summary("", folder=tmp_path, model=path)
    assert f"transformers chat {path}" in capsys.readouterr().out
    run = tmp_path / "a run"
    adapted(path, LoraSection(r=2)).save_pretrained(run / "1-sft-all" / "model")
    (run / "preset.yaml").touch()
    for folder, model in ((tmp_path, run / "1-sft-all" / "model"), (run, run / "1-sft-all/model")):
        print_summary("", folder=folder, model=str(model))
        shown = capsys.readouterr().out
        assert f"python recipes/export.py '{run}' --to DIR" in shown
        assert "transformers chat" not in shown
    adapted(path, LoraSection(r=2)).save_pretrained(tmp_path / "alone")
    print_summary("", folder=tmp_path, model=str(tmp_path / "alone"))
    shown = capsys.readouterr().out
    assert "export.py" not in shown and f"{tmp_path}/alone/README.md shows how to load" in shown


@pytest.mark.parametrize(("dora", "tokens"), [(False, ()), (True, ()), (False, (2, 3))])
def test_the_code_in_an_adapters_readme_loads_a_model_that_ends_its_turn(
    base, tmp_path, monkeypatch, capfd, dora, tokens
):
    path, tokenizer = base
    model = adapted(path, LoraSection(r=2, use_dora=dora), tokens)
    with torch.no_grad():
        ids = torch.tensor([IDS])
        expected = model(ids).logits
        # The first token of the answer is the one that ends a turn here.
        first = int(model.generate(ids, max_new_tokens=1, do_sample=False)[0, -1])
    own = GenerationConfig.from_pretrained(path).eos_token_id
    assert first != own
    save_model(model, tokenizer, tmp_path / "adapter")
    settings = GenerationConfig.from_pretrained(tmp_path / "adapter")
    assert set(stop_ids(tokenizer)) <= set(settings.eos_token_id)
    settings.eos_token_id = [*settings.eos_token_id, first]
    settings.save_pretrained(tmp_path / "adapter")
    card = (tmp_path / "adapter" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "peft" and "base_model" not in front  # a local base
    code = card.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path / "adapter")
    names: dict = {}
    capfd.readouterr()
    exec(code, names)
    assert "MISSING" not in capfd.readouterr().err
    with torch.no_grad():
        torch.testing.assert_close(names["model"](ids).logits, expected)
        written = names["model"].generate(input_ids=ids, max_new_tokens=8, do_sample=False)
    assert written[0, len(IDS) :].tolist() == [first]


def adapter_at(folder, base):
    folder.mkdir(parents=True)
    config = {"base_model_name_or_path": base, "r": 4, "lora_alpha": 8, "lora_dropout": 0.0}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def whole_at(folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return str(folder)


def test_a_base_is_looked_for_in_the_run_only_where_it_was_the_run_s(tmp_path):
    run = tmp_path / "run"
    adapter = adapter_at(run / "2-sft-dialogue" / "model", "/gone/run/2-sft-dialogue/start/model")
    assert adapter_base(adapter) == "/gone/run/2-sft-dialogue/start/model"
    here = whole_at(run / "2-sft-dialogue" / "start" / "model")
    assert adapter_base(adapter) == here
    hashes = portable_hash(adapter / "adapter_config.json"), model_fingerprint(str(adapter))
    (adapter / "adapter_config.json").write_text(
        json.dumps(read_json(adapter / "adapter_config.json") | {"base_model_name_or_path": here})
    )
    assert hashes == (
        portable_hash(adapter / "adapter_config.json"),
        model_fingerprint(str(adapter)),
    )
    # Copied, not moved: still its own. A user's model of such a name is nobody's run.
    other = whole_at(tmp_path / "other" / "base" / "model")
    own = whole_at(run / "base" / "model")
    adapter = adapter_at(run / "1-sft-all" / "model", other)
    assert adapter_base(adapter) == other
    (tmp_path / "other" / "preset.yaml").touch()
    assert adapter_base(adapter) == own
    assert adapter_base(adapter_at(run / "3-dpo" / "model", "org/base")) == "org/base"


def test_a_given_adapter_with_other_options_and_dora_over_zero_3_are_refused(tmp_path, monkeypatch):
    adapter = adapter_at(tmp_path / "mine" / "model", "org/base")
    preset = Preset(model=ModelSection(str(adapter)), lora=LoraSection(r=8, lora_alpha=8))
    with pytest.raises(UserError, match=r"lora\.r=8, but the adapter .* has 4; set that, or"):
        check_sft(preset, FLOAT)
    preset.lora.r = 4
    check_sft(preset, FLOAT)
    preset.lora.use_dora = True
    with pytest.raises(UserError, match=r"lora\.use_dora=true, but the adapter .* has false"):
        check_sft(preset, FLOAT)
    preset.lora.between_stages = "merge"
    check_sft(preset, FLOAT)
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    with pytest.raises(UserError, match="ZeRO-3 shards them"):
        check_sft(preset, FLOAT)


def dry_run(world, *options):
    return train([str(world / "preset.yaml"), "eval.limit=2", *options, "--dry-run"])


@pytest.mark.parametrize(
    ("tied", "targets", "sentence"),
    [
        (True, "[q_proj, lm_head]", "lm_head is the head"),
        (False, "[q_proj, lm_head]", "lm_head is the head"),
        (True, "[q_proj, embed_tokens]", "embed_tokens is the head's matrix too"),
        (True, "[q_proj, w9]", "names w9"),
        (True, "'.*(q_proj|lm_head)'", "lm_head is the head"),
    ],
)
def test_targets_that_the_loss_would_pass_by_are_refused_in_the_dry_run(
    tmp_path, capsys, tied, targets, sentence
):
    world = build_world(tmp_path, make_tiny_tokenizer())
    make_tiny_model(tie_word_embeddings=tied).save_pretrained(world / "base")
    assert dry_run(world, "lora.r=4", f"lora.target_modules={targets}") == 2
    assert sentence in capsys.readouterr().err


def test_a_head_named_as_a_parameter_is_refused(base):
    path, _ = base
    targets = {"target_modules": ["q_proj"], "target_parameters": ["embed_tokens.weight"]}
    with pytest.raises(UserError, match=r"^lora.target_parameters: embed_tokens is the head's"):
        adapted(path, LoraSection(r=4, **targets))
    targets["target_parameters"] = ["q_proj.weight"]
    named = r"^lora.target_modules=\[q_proj\] and lora.target_parameters=\[q_proj.weight\]: PEFT"
    with pytest.raises(UserError, match=named):
        adapted(path, LoraSection(r=4, **targets))


def plain_adapter(base, folder, targets):
    """What PEFT's own `save_pretrained` leaves: weights and a configuration, no tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(base)
    plain = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    plain.save_pretrained(folder)
    assert not list(folder.glob("*token*"))
    return str(folder)


def test_an_adapter_saved_without_a_tokenizer_has_that_of_its_base(base, tmp_path):
    path, tokenizer = base
    section = ModelSection(plain_adapter(path, tmp_path / "plain", ["q_proj"]))
    found = load_tokenizer(check_model(section), section)
    assert found.get_vocab() == tokenizer.get_vocab()
    assert not has_template(section.name_or_path, section)
    assert not is_chat_model(section.name_or_path, trust_remote_code=False)
    tokenizer.save_pretrained(path)  # with a template, at whose end of turn the base stops
    settings = GenerationConfig(eos_token_id=stop_ids(tokenizer))
    settings.save_pretrained(path)
    assert has_template(section.name_or_path, section)
    assert is_chat_model(section.name_or_path, trust_remote_code=False)


def test_layers_that_a_given_adapter_has_not_are_refused_with_those_that_it_has(tmp_path, capsys):
    world = build_world(tmp_path, make_tiny_tokenizer())
    adapter = plain_adapter(world / "base", tmp_path / "plain", ["q_proj", "v_proj"])
    given = ["lora.r=4", "lora.lora_alpha=8", f"model.name_or_path={adapter}"]
    assert dry_run(world, *given) == 2
    said = capsys.readouterr().err
    assert "lora.target_modules=all-linear are not the layers that the adapter" in said
    assert "set lora.target_modules=[q_proj, v_proj], or lora.between_stages=merge" in said
    assert dry_run(world, *given, "lora.target_modules=[v_proj, q_proj]") == 0
    assert dry_run(world, *given, "lora.between_stages=merge") == 0
    settings = read_json(tmp_path / "plain" / "adapter_config.json")
    first = {"layers_to_transform": [0], "layers_pattern": "layers"}
    (tmp_path / "plain" / "adapter_config.json").write_text(json.dumps(settings | first))
    weights = load_file(tmp_path / "plain" / "adapter_model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layers.0" in name}
    save_file(kept, tmp_path / "plain" / "adapter_model.safetensors")
    assert dry_run(world, *given, "lora.target_modules=[v_proj, q_proj]") == 2
    assert "; set lora.between_stages=merge to begin" in capsys.readouterr().err


def test_tokens_whose_embedding_has_an_adapter_already_are_refused_in_the_dry_run(tmp_path, capsys):
    world = build_world(tmp_path, make_tiny_tokenizer())
    make_tiny_model(tie_word_embeddings=False).save_pretrained(world / "base")
    targets = "lora.target_modules=[q_proj, embed_tokens]"
    assert dry_run(world, "lora.r=4", targets, "model.add_tokens=[<a>]") == 2
    assert "PEFT cannot adapt this 'llama' model" in capsys.readouterr().err


def test_an_adapter_over_a_grown_vocabulary_is_refused_with_what_merges_it(tmp_path, capsys):
    world = build_world(tmp_path, make_tiny_tokenizer())
    model, tokenizer = make_tiny_model(), make_tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<a>", "<b>"]})
    model.resize_token_embeddings(262)
    ensure_template(tokenizer)
    grown = get_peft_model(model, lora_config(LoraSection(r=4)))
    grown.peft_config["default"].base_model_name_or_path = str(world / "base")
    grown.save_pretrained(tmp_path / "mine", save_embedding_layers=True)
    tokenizer.save_pretrained(tmp_path / "mine")
    assert dry_run(world, "lora.r=4", f"model.name_or_path={tmp_path / 'mine'}") == 2
    said = capsys.readouterr().err
    assert "[262, 32], its base" in said and "[260, 32]: the vocabulary grew" in said
    command = said.split('python -c "')[1].rsplit('"', 1)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # upstream's, of a tied adapter merged
        exec(command, {})
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "mine-merged")
    ids = torch.tensor([[260, 261, *IDS]])
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, grown(ids).logits, rtol=1e-4, atol=1e-4)
    assert dry_run(world, "lora.r=4", f"model.name_or_path={tmp_path / 'mine-merged'}") == 0


def test_an_adapter_of_another_base_is_refused_before_it_is_loaded(base, tmp_path):
    path, tokenizer = base
    save_model(adapted(path, LoraSection(r=4)), tokenizer, tmp_path / "one")
    make_tiny_model(intermediate_size=48).save_pretrained(path)
    with pytest.raises(UserError, match=r"down_proj\.lora_A\.weight is \[4, 64\], its base"):
        check_model(ModelSection(str(tmp_path / "one")))
