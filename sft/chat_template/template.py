"""Chooses the chat template: the tokenizer's, the user's, or a default one."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from sft.chat_template.turn_end import find_turn_end
from sft.config.preset import find_path
from sft.errors import UserError

# End-of-text tokens of public vocabularies, for tokenizers whose configuration names none.
KNOWN_EOS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "[EOS]")


def ensure_template(tokenizer: PreTrainedTokenizerBase, *, template: str | None = None) -> str:
    """Give the tokenizer a template if it has none; return a line for the log.

    `template` (a .jinja path or text) replaces the tokenizer's own. A missing eos_token is set from
    the vocabulary; no token is added. Raises UserError if there is no such file or eos_token, or
    the template does not end its turns.
    """
    notes = []
    if tokenizer.eos_token is None:
        notes.append(_adopt_eos(tokenizer))
    if template is not None:
        tokenizer.chat_template = _read_template(template)
        notes.insert(0, "given by model.chat_template")
    elif tokenizer.chat_template is not None:
        notes.insert(0, "the tokenizer's own")
    else:
        bos = tokenizer.bos_token
        chatml = all(_is_single(tokenizer, token) for token in ("<|im_start|>", "<|im_end|>"))
        writes_bos = bos is not None and bos not in (tokenizer.eos_token, "<|im_start|>")
        name, file = ("ChatML", "chatml") if chatml else ("User/Assistant", "user_assistant")
        ours = Path(__file__).with_name(f"{file}.jinja").read_text(encoding="utf-8")
        tokenizer.chat_template = ours.replace("BOS", "bos_token" if writes_bos else "''")
        notes.insert(0, f"ours ({name}), the tokenizer has none")
    ending = find_turn_end(tokenizer)
    return f"chat template: {'; '.join(notes)}; a turn ends with {ending.texts[0]}"


def _adopt_eos(tokenizer: PreTrainedTokenizerBase) -> str:
    known = [token for token in KNOWN_EOS if _is_single(tokenizer, token)]
    if not known:
        raise UserError(
            "the tokenizer names no eos_token and its vocabulary has none of "
            f"{', '.join(KNOWN_EOS)}; set eos_token in its tokenizer_config.json"
        )
    tokenizer.eos_token = known[0]
    return f"eos_token is {known[0]}, from the vocabulary"


def _is_single(tokenizer: PreTrainedTokenizerBase, token: str) -> bool:
    ids = tokenizer.encode(token, add_special_tokens=False)
    return token in tokenizer.get_vocab() and len(ids) == 1


def _read_template(template: str) -> str:
    if "{%" in template or "{{" in template:
        return template
    path = find_path(template)
    if path is None or not path.is_file():
        raise UserError(
            f"model.chat_template={template!r} is neither a file nor template text; give the path "
            "of a .jinja file"
        )
    return path.read_text(encoding="utf-8")
