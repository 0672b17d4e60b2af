"""A chat model is told from a base by where it stops, not by a template alone."""

import pytest
from tiny_models import make_tiny_model
from transformers import GenerationConfig

from sft.chat_template.template import ensure_template
from sft.chat_template.turn_end import find_turn_end
from sft.model.chat_models import is_chat_model


@pytest.mark.parametrize(
    ("template", "stops", "chat"),
    [(True, "turn", True), (True, "document", False), (True, "both", True), (False, "turn", False)],
)
@pytest.mark.parametrize("generation", [True, False])
def test_a_chat_model_stops_where_its_own_template_ends_a_turn(
    tiny_tokenizer, tmp_path, template, stops, chat, generation
):
    plain = tiny_tokenizer.chat_template
    ensure_template(tiny_tokenizer)
    turn = find_turn_end(tiny_tokenizer).ids[0]
    document = next(i for i in (0, 1, 2, 3) if i != turn)
    ids = {"turn": turn, "document": document, "both": [document, turn]}[stops]
    if not template:
        tiny_tokenizer.chat_template = plain
    tiny_tokenizer.save_pretrained(tmp_path)
    model = make_tiny_model()
    model.config.eos_token_id = ids
    model.generation_config = GenerationConfig(eos_token_id=ids)
    model.save_pretrained(tmp_path)
    if not generation:
        (tmp_path / "generation_config.json").unlink()
    assert is_chat_model(str(tmp_path), trust_remote_code=False) == chat
