"""Preference rows to token rows: one prompt, two completions, which of their tokens count."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from sft.chat import EncodedChat, encode_chats, encode_prompt
from sft.config import UserError

COLUMNS = ("prompt_ids", "chosen_ids", "chosen_scored", "rejected_ids", "rejected_scored")


def encode_pairs(
    rows: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, *, max_length: int | None
) -> tuple[Dataset, dict[str, int]]:
    """Token rows of preferences, and how many were left out by reason.

    Rows built from samples bring their own token ids, which are used as they are; given rows are
    rendered with the template. A pair with either side longer than `max_length` (prompt included)
    is left out whole: cutting one answer would teach its length.

    Raises:
        UserError: a row cannot be rendered, or no pair is left.
    """
    sampled = [row for row in rows if "prompt_ids" in row]
    given = [row for row in rows if "prompt_ids" not in row]
    encoded = [_from_samples(row) for row in sampled] + _from_messages(given, tokenizer)
    kept, too_long, same = [], 0, 0
    for row in encoded:
        longest = len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
        if max_length is not None and longest > max_length:
            too_long += 1
        elif row["chosen_ids"] == row["rejected_ids"]:
            same += 1
        else:
            kept.append(row)
    if not kept:
        raise UserError(
            f"no preference pair is left of {len(rows)} ({too_long} longer than dpo.max_length="
            f"{max_length}, {same} with equal answers); raise dpo.max_length or give other pairs"
        )
    return Dataset.from_list(kept), {"pairs": len(kept), "too_long": too_long, "equal": same}


def _from_samples(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "prompt_ids": row["prompt_ids"],
        "chosen_ids": row["chosen_ids"],
        "chosen_scored": [True] * len(row["chosen_ids"]),
        "rejected_ids": row["rejected_ids"],
        "rejected_scored": [True] * len(row["rejected_ids"]),
    }


def _from_messages(
    rows: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, Any]]:
    chats = [
        {"messages": [*row["prompt"], *row[side]], "tools": row.get("tools")}
        for row in rows
        for side in ("chosen", "rejected")
    ]
    encoded = list(encode_chats(tokenizer, chats, turns="last"))
    result = []
    for i, row in enumerate(rows):
        where = row.get("origin", f"pair {i}")
        prompt = encode_prompt(tokenizer, row["prompt"], tools=row.get("tools"))
        token_row: dict[str, Any] = {"prompt_ids": prompt}
        for side, chat in zip(("chosen", "rejected"), encoded[2 * i : 2 * i + 2], strict=True):
            if isinstance(chat, UserError):
                raise UserError(f"{where}: {side}: {chat}")
            ids, scored = _completion(chat, prompt, where=f"{where}: {side}")
            token_row |= {f"{side}_ids": ids, f"{side}_scored": scored}
        result.append(token_row)
    return result


def _completion(
    chat: EncodedChat, prompt: list[int], *, where: str
) -> tuple[list[int], list[bool]]:
    """What follows the prompt, up to the last token that counts."""
    if chat.input_ids[: len(prompt)] != prompt:
        raise UserError(
            f"{where}: the chat template renders the prompt differently once the answer follows; "
            "set model.chat_template to one that does not"
        )
    end = max(i for i, trained in enumerate(chat.trained) if trained) + 1
    return chat.input_ids[len(prompt) : end], chat.trained[len(prompt) : end]
