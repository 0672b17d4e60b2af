"""Generation settings that published models have are saved again, or refused before training."""

import json

import pytest
from tiny_models import make_tiny_model
from tiny_world import build_world
from transformers import GenerationConfig

from recipes.sft_then_dpo import main
from sft.chat_template.template import ensure_template
from sft.config.sections import ModelSection
from sft.errors import UserError
from sft.model.generation_settings import repair_generation_config
from sft.model.loading import check_model, save_model
from sft.run.stage_folders import STAGE_FOLDERS
from sft.training.stage import try_saving


def write_settings(folder, **settings):
    (folder / "generation_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("settings", "saved"),
    [
        ({"temperature": 0.6}, {"temperature": 0.6, "do_sample": True}),
        (
            {"do_sample": False, "top_p": 0.9, "top_k": 20},
            {"top_p": 0.9, "top_k": 20, "do_sample": True},
        ),
        ({"length_penalty": 0.5, "early_stopping": True}, {}),
        ({"output_scores": True, "min_p": 0.1}, {"min_p": 0.1, "do_sample": True}),
        ({"do_sample": True, "temperature": 0.7}, {"do_sample": True, "temperature": 0.7}),
        ({"repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
    ],
)
def test_settings_that_contradict_each_other_are_made_to_be_saved(
    tmp_path, tiny_tokenizer, settings, saved
):
    model = make_tiny_model()
    ensure_template(tiny_tokenizer)
    write_settings(tmp_path, **settings)
    model.generation_config = GenerationConfig.from_pretrained(tmp_path)
    repair_generation_config(model)
    save_model(model, tiny_tokenizer, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    for name in ("eos_token_id", "pad_token_id", "use_cache", "transformers_version"):
        found.pop(name, None)
    assert {name: value for name, value in found.items() if value not in (None, False)} == saved


def test_a_base_with_a_temperature_alone_trains_to_its_end(tmp_path, tiny_tokenizer, caplog):
    caplog.set_level("INFO")
    world = build_world(tmp_path, tiny_tokenizer)
    write_settings(world / "base", temperature=0.6, pad_token_id=-1)
    options = ["sft_dialogue.enabled=false", "dpo.enabled=false", "eval.tasks=[]"]
    assert main([str(world / "preset.yaml"), *options]) == 0
    assert "do_sample=true added to temperature" in caplog.text
    model = world / "run" / STAGE_FOLDERS["sft-all"] / "model"
    settings = GenerationConfig.from_pretrained(model)
    assert (settings.temperature, settings.do_sample) == (0.6, True)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[1]", "holds no object of settings"),
        ("{", "is damaged"),
        ('{"transformers_version": "\\ud800"}', "transformers_version holds half a character"),
        ('{"output_hidden_states": "x"}', "output_hidden_states='x' is neither true nor false"),
        ('{"use_cache": 3}', "use_cache='3' is neither true nor false"),
        ('{"eos_token_id": "x"}', "eos_token_id='x' is no token id or list of them"),
        ('{"eos_token_id": [2, null]}', "eos_token_id='[2, None]' is no token id"),
        ('{"pad_token_id": 1e30}', "pad_token_id='1e+30' is no token id"),
        ('{"max_new_tokens": 0}', "`max_new_tokens` must be greater than 0"),
        ('{"early_stopping": "x"}', "`early_stopping` must be a boolean"),
        ('{"num_return_sequences": 3}', "do not support `num_return_sequences`"),
        ('{"suppress_tokens": 3, "forced_eos_token_id": 3}', "cannot be used"),
    ],
)
def test_settings_that_break_a_rule_are_refused_before_any_weights(tmp_path, content, words):
    make_tiny_model().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(UserError, match=r"generation_config\.json") as refused:
        check_model(ModelSection(str(tmp_path)))
    assert words in str(refused.value)


def test_what_cannot_be_saved_is_found_before_it_is_trained(tmp_path, tiny_tokenizer):
    model = make_tiny_model()
    ensure_template(tiny_tokenizer)
    use_cache = model.config.use_cache = False
    try_saving(model, tiny_tokenizer, tmp_path)
    assert model.config.use_cache == use_cache and not list(tmp_path.iterdir())
    model.generation_config.num_return_sequences = 3
    with pytest.raises(UserError, match=r"could not be saved at the end of the stage .*num_return"):
        try_saving(model, tiny_tokenizer, tmp_path)
    assert not list(tmp_path.iterdir())
