"""Preference sources to rows of {"prompt", "chosen", "rejected"}, each a list of messages."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from dpo.preference_labels import FIRST, TIE, Verdicts
from sft.config.sections import Source
from sft.data.field_names import CONTENT, OUTPUT_PAIRS, PAIRS, SIDES, present_pairs, several_answers
from sft.data.fields import Fields
from sft.data.formats import MappedRow, read_question, unknown_format, unread_content
from sft.data.json_values import decode_json, number_of
from sft.data.loss_marks import without_marks
from sft.data.messages import (
    as_turns,
    check_turns,
    cut_lead,
    drop_null_arguments,
    read_tools,
    text_field,
)
from sft.data.records import RowError, wrong_type
from sft.data.sources import ParsedRow, SourceRows, collect, metadata, read_each, read_kind
from sft.data.unsupported import check_no_media, check_no_media_placeholders, check_not_kto
from sft.errors import UserError
from sft.schema import ChatMessage

HH_TURN = re.compile(r"\n\n(Human|Assistant): ?")
SCORES = (
    "overall_score",
    "score",
    "fine-grained_score",
)  # of UltraFeedback, in order of preference
HH_ROLES = {"Human": "user", "Assistant": "assistant"}
# Fields that comment on the answers; leaving them out loses nothing.
COMMENTS = frozenset({"rationale", "explanation", "reason", "reasoning", "comment", "comments"})
Pair = tuple[list[ChatMessage], list[ChatMessage], list[ChatMessage]]


def read_preferences(sources: Sequence[Source], *, on_error: str = "stop") -> SourceRows:
    """Read preference pairs from files or hub datasets of any known format.

    Known: TRL's prompt/chosen/rejected (texts or messages) and its implicit prompt (full
    conversations), UltraFeedback binarized and with scores, LLaMA-Factory's and MedicalGPT's
    conversations with chosen and rejected, raw HH transcripts, StackExchange's response_j and
    response_k, two outputs with a label, a preference between 1 and 2, a winner (arena), the
    verdicts of SHP, PKU-SafeRLHF and HelpSteer, or annotators' votes (0 is a tie).

    Returns:
        Rows of {"prompt", "chosen", "rejected", "kind", "origin"}; prompt ends with a user or tool
        turn, chosen and rejected are one assistant message each and differ. Ties and exact
        duplicates are dropped and counted in either mode.

    Raises:
        UserError: one sentence with file and line, the rule and the remedy: on the first bad row
            under "stop"; always for a missing file, a file of chats or of KTO labels, and a source
            without a usable pair.
    """
    return collect([(source, _pairs(source)) for source in sources], on_error=on_error)


def _pairs(source: Source) -> Iterator[ParsedRow | RowError]:
    verdicts = Verdicts(source)

    def read(named: MappedRow) -> Iterator[ParsedRow]:
        row, changes = _row(named, source, verdicts)
        unread = unread_content(named, [*row["prompt"], *row["chosen"], *row["rejected"]])
        unread |= dict.fromkeys(COMMENTS & unread.keys(), "")
        yield ParsedRow(row, raw=named.raw, changes=changes, unread=unread)

    yield from read_each(source, read)
    verdicts.refuse_from_zero()


def _row(
    record: MappedRow, source: Source, verdicts: Verdicts
) -> tuple[dict[str, Any], tuple[str, ...]]:
    fields, origin = record.fields, record.origin
    check_no_media(fields, origin)
    prompt, chosen, rejected = map(without_marks, _read_pair(fields, origin, verdicts))
    prompt, changes = cut_lead(prompt)
    cut = [drop_null_arguments(turns) for turns in (prompt, chosen, rejected)]
    prompt, chosen, rejected = (turns for turns, _ in cut)
    changes = (*changes, *dict.fromkeys(rule for _, rules in cut for rule in rules))
    check_no_media_placeholders(prompt, origin)
    _check(prompt, chosen, rejected, origin)
    row: dict[str, Any] = {
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "kind": read_kind(record, source, messages=prompt),
        "origin": origin,
    }
    tools, nulls = read_tools(fields.get("tools"), origin)
    if tools:
        row["tools"] = tools
    return row | metadata(record), (*changes, *nulls)


def _read_pair(fields: Fields, origin: str, verdicts: Verdicts) -> Pair:
    for better, worse in present_pairs(SIDES, fields):
        return _read_sides(fields, better, worse, origin)
    for first, second in present_pairs(OUTPUT_PAIRS, fields):
        verdict = verdicts.read(fields, origin)
        if verdict == TIE:
            raise _tie(origin)
        better, worse = (first, second) if verdict == FIRST else (second, first)
        return _read_sides(fields, better, worse, origin)
    if "completions" in fields and read_question(fields, origin):
        return _read_scored(fields, origin)
    _refuse_others(fields, origin)
    columns = "prompt: FIELD, chosen: FIELD, rejected: FIELD"
    raise unknown_format(fields, origin, wanted="preference", columns=columns)


def _refuse_others(fields: Fields, origin: str) -> None:
    chat = {"messages", "conversations", "conversation"} & fields.keys()
    if (several := several_answers(fields)) is not None:
        raise UserError(
            f"{origin}: {several!r} is a list of {len(fields.peek(several))} answers, and nothing "
            f"says which is the better; if the first is better than the second, set "
            f"columns={{chosen: '{several}[0]', rejected: '{several}[1]'}}; if a field names it, "
            f"columns={{output_1: '{several}[0]', output_2: '{several}[1]', label: FIELD}} and its "
            "values as labels={VALUE: first, VALUE: second}"
        )
    remedy = "DPO needs chosen and rejected answers to the same prompt"
    check_not_kto(fields, origin, wanted="a pair", remedy=remedy)
    if chat or present_pairs(PAIRS, fields):
        raise UserError(
            f"{origin}: the row is a chat without a rejected answer, not a preference; list the "
            "file under data.sft"
        )
    if fields.keys() & CONTENT == {"text"}:
        raise UserError(
            f"{origin}: the row is plain text, not a preference; list the file under data.sft"
        )


def _read_sides(fields: Fields, better: str, worse: str, origin: str) -> Pair:
    given = [fields[side] for side in (better, worse)]
    if fields.cells and all(_is_one_text(decode_json(value)) for value in given):
        given = [decode_json(value) for value in given]  # CSV has no other way to write a list
    chosen, rejected = (
        _answer(value, origin, side) for value, side in zip(given, (better, worse), strict=True)
    )
    conversations = [bool(side) and side[0]["role"] != "assistant" for side in (chosen, rejected)]
    if conversations[0] != conversations[1]:
        raise RowError(
            origin,
            rule="uneven sides",
            detail=f"of {better} and {worse} one is a conversation, the other an answer",
            remedy="write both as answers, or both as conversations",
        )
    prompt = read_question(fields, origin)
    if not conversations[0]:
        return prompt, chosen, rejected
    # At least one message of each side stays as its answer.
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    implied = chosen[:shared]
    turns = [[m for m in side if m["role"] != "system"] for side in (implied, prompt)]
    if prompt and turns[0] != turns[1]:
        raise RowError(
            origin,
            rule="prompt differs",
            detail=f"{better} and {worse} do not both begin with the prompt",
            remedy="leave the prompt out, or write the answers alone",
        )
    return implied, chosen[shared:], rejected[shared:]


def _answer(value: Any, origin: str, side: str) -> list[ChatMessage]:
    """Return the messages of a side: an answer, a list of messages or a raw HH transcript."""
    if isinstance(value, str) and HH_TURN.match(value):
        return read_transcript(value, origin)
    return as_turns(value[0] if _is_one_text(value) else value, "assistant", origin, where=side)


def _is_one_text(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 1 and isinstance(value[0], str)


def read_transcript(text: str, origin: str) -> list[ChatMessage]:
    """Return the messages of a raw HH transcript, "\\n\\nHuman: ...\\n\\nAssistant: ..."."""
    _, *parts = HH_TURN.split(text)
    return [
        {"role": HH_ROLES[role], "content": text_field(content.strip(), origin, where=role)}
        for role, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def _tie(origin: str) -> RowError:
    detail, remedy = "neither answer is better", "a tie makes no pair"
    return RowError(origin, rule="tie", detail=detail, remedy=remedy, counted=True)


def _read_scored(fields: Fields, origin: str) -> Pair:
    """Return the best and the worst of UltraFeedback's scored completions."""
    completions = decode_json(fields["completions"])
    scored = []
    for i, one in enumerate(completions if isinstance(completions, list) else []):
        present = [key for key in SCORES if isinstance(one, dict) and key in one]
        score = number_of(one[present[0]]) if present else None
        if score is None or "response" not in one:
            raise wrong_type(origin, f"completions[{i}]", one, "an object of response and score")
        scored.append((score, as_turns(one["response"], "assistant", origin, where="response")))
    if len(scored) < 2:
        raise wrong_type(origin, "completions", completions, "a list of two or more answers")
    best, worst = max(scored, key=lambda s: s[0]), min(scored, key=lambda s: s[0])
    if best[0] == worst[0]:
        raise _tie(origin)
    return read_question(fields, origin), best[1], worst[1]


def _check(
    prompt: list[ChatMessage], chosen: list[ChatMessage], rejected: list[ChatMessage], origin: str
) -> None:
    if not any(message["role"] == "user" for message in prompt):
        raise RowError(
            origin,
            rule="no prompt",
            detail="the pair has no prompt",
            remedy="add a prompt, or the turns before the answers to chosen and rejected",
        )
    if prompt[-1]["role"] not in ("user", "tool"):
        raise RowError(
            origin,
            rule="prompt ends on an answer",
            detail=f"the prompt ends with a {prompt[-1]['role']} turn",
            remedy="it must end with the turn that chosen and rejected answer",
        )
    check_turns(prompt, origin)
    for side, answer in (("chosen", chosen), ("rejected", rejected)):
        if len(answer) != 1 or answer[0]["role"] != "assistant":
            raise RowError(
                origin,
                rule="answer of several turns",
                detail=f"{side} has {len(answer)} messages after the shared prompt",
                remedy="it must be one assistant message",
            )
        if not answer[0]["content"].strip() and not answer[0].get("tool_calls"):
            raise RowError(
                origin,
                rule=f"empty {side}",
                detail=f"{side} is empty",
                remedy="fill it or remove the row",
            )
    if chosen == rejected:
        raise RowError(
            origin,
            rule="chosen equals rejected",
            detail="chosen and rejected are the same",
            remedy="remove the row",
        )
