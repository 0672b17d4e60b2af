"""Writes tokenizer and Ollama Modelfile of an export, and checks that token ids are equal.

A conversation must become the same ids in training, evaluation and other programs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sft.chat_template.encoding import encode_chat, encode_prompt, ids_of, stop_ids
from sft.chat_template.render import Message
from sft.chat_template.template_date import apply_template, date_of, writes_date
from sft.errors import UserError
from sft.export.ollama import TurnFormat, find_turn_format, modelfile, probe_chats, write
from sft.system.atomic_files import read_json, write_json, write_text

ANSWER = {"role": "assistant", "content": "Fine."}


@dataclass(frozen=True)
class TokenParity:
    """The number of conversations with equal ids, and where they were compared."""

    chats: int
    ways: tuple[str, ...]


def complete_tokenizer_config(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write `add_bos_token` and the chat template to tokenizer_config.json."""
    # Ollama and llama.cpp add BOS unless `add_bos_token` is false; transformers before 4.53
    # reads no chat_template.jinja.
    file = folder / "tokenizer_config.json"
    known = read_json(file) | {"add_bos_token": adds_bos(tokenizer)}
    write_json(file, known | {"chat_template": tokenizer.chat_template})


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer adds BOS to a plain text."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a")["input_ids"][0] == bos


def write_modelfile(
    folder: Path, tokenizer: PreTrainedTokenizerBase, *, window: int | None
) -> TurnFormat:
    """Write folder/Modelfile with the stops of generation_config.json; return the fixed texts."""
    turns = find_turn_format(tokenizer)
    for chat in probe_chats(system="system" in turns.around):
        if _ids_of_text(tokenizer, turns, chat) != encode_prompt(tokenizer, chat):
            raise UserError(
                "the chat template's text becomes other tokens where BOS is not part of it; serve "
                "the model with its own template instead (llama-server --jinja, vllm)"
            )
    text = modelfile(
        turns,
        stops=list(filter(None, tokenizer.batch_decode([[stop] for stop in _eos_ids(folder)]))),
        window=window,
        adds_bos=adds_bos(tokenizer),
        day=date_of(tokenizer) if writes_date(tokenizer) else None,
    )
    write_text(folder / "Modelfile", text)
    return turns


def check_token_parity(
    tokenizer: PreTrainedTokenizerBase,
    *,
    folder: Path,
    recorded: Sequence[dict[str, Any]] = (),
    turns: TurnFormat | None = None,
    trust_remote_code: bool = False,
) -> TokenParity:
    """Raise UserError if a conversation becomes other ids in training, evaluation or export.

    Also if generation in `folder` does not stop on the end-of-turn of training. `recorded` are rows
    of {"messages", "prompt_ids"} stored by the evaluation, `turns` those of the Modelfile.
    """
    exported: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    system = turns is None or "system" in turns.around
    chats: list[tuple[list[Message], list[int] | None]] = []
    chats += [(chat, None) for chat in probe_chats(system=system)]
    chats += [(row["messages"], row["prompt_ids"]) for row in recorded]
    ways = ["training", "evaluation", "transformers chat"] + ["Ollama's template"] * bool(turns)
    for chat, stored in chats:
        prompt = encode_prompt(tokenizer, chat)
        trained = encode_chat(tokenizer, [*chat, ANSWER]).input_ids[: len(prompt)]
        # As transformers/cli/serving/chat_completion.py requests them.
        options: dict[str, Any] = {"day": date_of(tokenizer), "tokenize": True, "return_dict": True}
        encoded = apply_template(exported, chat, add_generation_prompt=True, **options)
        found = [trained, stored or prompt, encoded["input_ids"]]
        found += [_ids_of_text(exported, turns, chat)] if turns else []
        for way, ids in zip(ways, found, strict=True):
            if ids != prompt:
                raise UserError(
                    f"{folder}: a chat becomes other tokens in {way} than in the prompt of "
                    f"training ({_difference(ids, prompt)}); the chat template or the tokenizer "
                    "was changed after training"
                )
    stops = _eos_ids(folder)
    if not set(stop_ids(tokenizer)) <= set(stops):
        raise UserError(
            f"{folder}: generation stops on {stops}, training ended turns with "
            f"{stop_ids(tokenizer)}; export again"
        )
    return TokenParity(len(chats), tuple(ways))


def _eos_ids(folder: Path) -> list[int]:
    return list(ids_of(read_json(folder / "generation_config.json")["eos_token_id"]))


def _ids_of_text(tokenizer: Any, turns: TurnFormat, chat: Sequence[Message]) -> list[int]:
    """Return the ids of a prompt from the Modelfile, with BOS from the tokenizer if it adds one."""
    text = write(turns, chat)
    front = []
    if adds_bos(tokenizer):
        text = text.removeprefix(turns.bos)
        front = [tokenizer.bos_token_id]
    return [*front, *tokenizer(text, add_special_tokens=False)["input_ids"]]


def _difference(ids: list[int], prompt: list[int]) -> str:
    at = next((i for i, (a, b) in enumerate(zip(ids, prompt, strict=False)) if a != b), None)
    if at is None:
        return f"{len(ids)} tokens for {len(prompt)}"
    return f"token {at} is {ids[at]}, not {prompt[at]}"
