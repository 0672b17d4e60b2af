"""Preference rows to token rows: a prompt and two completions with their scored tokens."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from dpo.pair_checks import SIDES, PairFacts, broken_rules, pair_facts
from sft.chat_template.encoding import EncodedChat, encode_chats, encode_prompt
from sft.errors import UserError
from sft.tokenization.row_checks import Rules, check_no_broken_rules


def encode_pairs(
    rows: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, *, max_length: int | None
) -> tuple[Dataset, PairFacts]:
    """Return token rows of preferences, and statistics of the kept and dropped ones.

    Sampled rows keep their token ids; given rows are rendered with the chat template. A pair with a
    side longer than `max_length` (prompt included) is dropped.

    Raises:
        UserError: a row cannot be rendered or breaks a rule (see `sft.tokenization.row_checks`), or
            no pair is left.
    """
    rules = Rules.of(tokenizer)
    sampled = [row for row in rows if "prompt_ids" in row]
    given = [row for row in rows if "prompt_ids" not in row]
    ordered = [*sampled, *given]
    encoded = [_from_samples(row) for row in sampled] + _from_messages(given, tokenizer)
    kept: list[dict[str, Any]] = []
    counts = dict.fromkeys(("too_long", "uneven", "equal", "unfinished"), 0)
    broken: dict[str, list[str]] = {}
    for place, row in enumerate(encoded):
        sides = [len(row["prompt_ids"]) + len(row[f"{s}_ids"]) for s in SIDES]
        # Truncating one answer would teach its length, so the pair is dropped.
        if max_length is not None and max(sides) > max_length:
            counts["too_long"] += 1
            counts["uneven"] += min(sides) <= max_length
        elif row["chosen_ids"] == row["rejected_ids"]:
            counts["equal"] += 1
        else:
            origin = ordered[place].get("origin", f"pair {place + 1}")
            kept.append(row | {"origin": origin})
            counts["unfinished"] += _unfinished(ordered[place])
            for rule in broken_rules(row, rules=rules, sampled=place < len(sampled)):
                broken.setdefault(rule, []).append(origin)
    check_no_broken_rules(broken, where="preference pairs")
    if not kept:
        raise UserError(
            f"no preference pair is left of {len(rows)} ({counts['too_long']} longer than "
            f"dpo.max_length={max_length}, {counts['equal']} with equal answers); raise "
            "dpo.max_length or give other pairs"
        )
    return Dataset.from_list(kept), pair_facts(kept, counts)


def _unfinished(row: dict[str, Any]) -> int:
    """Return how many of the two answers were sampled and cut at the cap."""
    # By the sampler's record: an answer may end with an eos id of the model that neither the
    # template nor the tokenizer names.
    ends = {tuple(one["token_ids"]): one["finish_reason"] for one in row.get("samples") or ()}
    return sum(ends.get(tuple(row.get(f"{s}_ids", ()))) == "cap" for s in SIDES)


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
        for side in SIDES
    ]
    # Earlier assistant turns are part of the prompt, so only the last one is scored.
    encoded = list(encode_chats(tokenizer, chats, turns="last"))
    result = []
    for i, row in enumerate(rows):
        where = row.get("origin", f"pair {i}")
        prompt = encode_prompt(tokenizer, row["prompt"], tools=row.get("tools"))
        token_row: dict[str, Any] = {"prompt_ids": prompt}
        for side, chat in zip(SIDES, encoded[2 * i : 2 * i + 2], strict=True):
            if isinstance(chat, UserError):
                raise UserError(f"{where}: {side}: {chat}")
            ids, scored = _completion(chat, prompt, where=f"{where}: {side}")
            token_row |= {f"{side}_ids": ids, f"{side}_scored": scored}
        result.append(token_row)
    return result


def _completion(
    chat: EncodedChat, prompt: list[int], *, where: str
) -> tuple[list[int], list[bool]]:
    """Return the tokens after the prompt up to the last scored one, and whether each is scored."""
    if chat.input_ids[: len(prompt)] != prompt:
        raise UserError(
            f"{where}: the chat template renders the prompt differently once the answer follows; "
            "set model.chat_template to one that does not"
        )
    end = max(i for i, trained in enumerate(chat.trained) if trained) + 1
    return chat.input_ids[len(prompt) : end], chat.trained[len(prompt) : end]
