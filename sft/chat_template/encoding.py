"""Encodes chats to token ids with the tokens to train, and prompts for generation."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby, islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from sft.chat_template.assistant_mask import (
    RenderedChat,
    check_no_control_tokens,
    find_trained_turns,
)
from sft.chat_template.message_forms import check_thinking_rendered, to_template_form
from sft.chat_template.render import Message, render
from sft.chat_template.rendering_checks import check_context_rendered
from sft.chat_template.template import ensure_template as ensure_template
from sft.chat_template.template_date import apply_template
from sft.chat_template.turn_end import control_pattern, find_turn_end, has_generation_tags
from sft.data.loss_marks import has_marks
from sft.errors import UserError


@dataclass(frozen=True)
class EncodedChat:
    """A chat as tokens; `trained[i]` is True if token i is a target of the loss.

    With ChatML, for user "hi" and assistant "yo":

        input_ids  ... hi <|im_end|> \\n <|im_start|> assistant \\n yo <|im_end|> \\n
        trained        0  0          0  0            0         0  1  1          0
    """

    input_ids: list[int]
    trained: list[bool]
    untrained_turns: int = 0  # assistant turns kept as context, see `assistant_mask`


def stop_ids(tokenizer: PreTrainedTokenizerBase, *, also: Iterable[int] = ()) -> list[int]:
    """Return the ids that end an assistant turn: the template's end-of-turn, eos, then `also`."""
    return list(dict.fromkeys([*find_turn_end(tokenizer).ids, *also]))


def ids_of(eos: int | list[int] | None) -> tuple[int, ...]:
    """Return the eos ids of a generation config, which holds one, several or none."""
    if eos is None:
        return ()
    return tuple(eos) if isinstance(eos, list) else (eos,)


def encode_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    tools: list[Any] | None = None,
    turns: str = "all",
) -> EncodedChat:
    """Tokenize a conversation and mark the assistant turns ("all" or the "last"), end included.

    Raises UserError for an invalid row: see `find_trained_turns`; or it begins with two BOS.
    """
    (result,) = encode_chats(tokenizer, [{"messages": messages, "tools": tools}], turns=turns)
    if isinstance(result, UserError):
        raise result
    return result


def encode_chats(
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[dict[str, Any]],
    *,
    turns: str = "all",
    chunk: int = 512,
) -> Iterator[EncodedChat | UserError]:
    """Yield `encode_chat` of rows {"messages", "tools"?} in order, tokenized in batches.

    Of a row {"text"} all is trained, from BOS (if chats have it) to eos. For an invalid row the
    UserError is yielded, so that the caller can add the row's place or count it.
    """
    assert turns in ("all", "last"), turns
    rows = iter(rows)
    tags = has_generation_tags(tokenizer)
    while batch := list(islice(rows, chunk)):
        chats = [_render_row(tokenizer, row, turns=turns) for row in batch]
        found = [chat for chat in chats if isinstance(chat, RenderedChat)]
        ids = _encode(tokenizer, [chat.text for chat in found])
        boundaries = list(map(partial(_prompt_boundaries, tokenizer), found, ids))
        prompt_texts = list({boundary.prompt_text for boundary in chain(*boundaries)})
        prompts = dict(zip(prompt_texts, _encode(tokenizer, prompt_texts), strict=True))
        stops = set(stop_ids(tokenizer)) if found else set()
        encoded = map(partial(_mask_turns, tokenizer, prompts, stops), found, ids, boundaries)
        for row, chat in zip(batch, chats, strict=True):
            result = next(encoded) if isinstance(chat, RenderedChat) else chat
            if tags and isinstance(chat, RenderedChat) and isinstance(result, EncodedChat):
                result = _mask_from_generation_tags(tokenizer, row, result, chat.lost, turns)
            yield result


@dataclass(frozen=True)
class PromptBoundary:
    """The text of a turn's prompt from token `offset` of the chat on.

    For the last turn it is the complete prompt, so that the row must begin as generation does. For
    earlier turns it begins at the last control token, before which tokens cannot depend on a turn.
    """

    prompt_text: str
    offset: int


def _prompt_boundaries(
    tokenizer: PreTrainedTokenizerBase, chat: RenderedChat, ids: list[int]
) -> list[PromptBoundary]:
    pattern, numbers = control_pattern(tokenizer)
    matches = list(pattern.finditer(chat.text))
    controls = set(numbers.values())
    places = [i for i, token in enumerate(ids) if token in controls]
    if [ids[i] for i in places] != [numbers[match.group()] for match in matches]:
        return [PromptBoundary(chat.text[: turn.start], 0) for turn in chat.turns]
    boundaries = []
    for turn in chat.turns:
        before = sum(match.end() <= turn.start for match in matches)
        start, offset = 0, 0
        if before and turn is not chat.turns[-1]:
            start, offset = matches[before - 1].start(), places[before - 1]
        boundaries.append(PromptBoundary(chat.text[start : turn.start], offset))
    return boundaries


def _render_row(
    tokenizer: PreTrainedTokenizerBase, row: dict[str, Any], *, turns: str
) -> RenderedChat | EncodedChat | UserError:
    try:
        if "text" in row:
            return _encode_text(tokenizer, row["text"])
        messages = to_template_form(tokenizer, row["messages"])
        if messages and messages[-1].get("role") == "assistant":
            check_thinking_rendered(tokenizer, row["messages"], tools=row.get("tools"))
        return find_trained_turns(
            tokenizer, messages, tools=row.get("tools"), last_only=turns == "last"
        )
    except UserError as error:
        return error


def _encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> EncodedChat:
    """Encode a plain text; all tokens but the first are trained."""
    check_no_control_tokens(tokenizer, [{"role": "text", "content": text}])
    bos = [tokenizer.bos_token_id] if find_turn_end(tokenizer).bos else []
    ids = bos + _encode(tokenizer, [text])[0] + [tokenizer.eos_token_id]
    return EncodedChat(ids, [False] + [True] * (len(ids) - 1))


def _mask_turns(
    tokenizer: PreTrainedTokenizerBase,
    prompts: dict[str, list[int]],
    stops: set[int],
    chat: RenderedChat,
    ids: list[int],
    boundaries: list[PromptBoundary],
) -> EncodedChat | UserError:
    """Mark as trained each turn whose prompt, tokenized alone, equals the ids before the turn."""
    prompt = prompts[boundaries[-1].prompt_text]
    last = boundaries[-1].offset
    if ids[last : last + len(prompt)] != prompt:
        # A token merges the end of the prompt with the answer's first line break. Generation cannot
        # produce that token, so prompt and answer are tokenized separately.
        rest = _encode_after(tokenizer, chat.text[chat.turns[-1].start :])
        ids = ids[:last] + prompt + rest
    trained = [False] * len(ids)
    untrained = chat.untrained
    for boundary in boundaries:
        prompt = prompts[boundary.prompt_text]
        start = boundary.offset + len(prompt)
        if ids[boundary.offset : start] != prompt:
            untrained += 1
            continue
        end = next((i for i in range(start, len(ids)) if ids[i] in stops), None)
        if end is None:
            return UserError("an assistant turn loses its end-of-turn token in tokenization")
        trained[start : end + 1] = [True] * (end + 1 - start)
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        return UserError(
            f"the chat begins with two BOS tokens ({tokenizer.bos_token}); remove one from the "
            "chat template or from the text"
        )
    return EncodedChat(input_ids=ids, trained=trained, untrained_turns=untrained)


def _mask_from_generation_tags(
    tokenizer: PreTrainedTokenizerBase,
    row: dict[str, Any],
    chat: EncodedChat,
    lost: frozenset[int],
    turns: str,
) -> EncodedChat | UserError:
    """Return the mask of the {% generation %} blocks, without `lost` turns (incomplete there)."""
    answers = [i for i, message in enumerate(row["messages"]) if message.get("role") == "assistant"]
    tagged = apply_template(
        tokenizer,
        to_template_form(tokenizer, row["messages"]),
        tools=row.get("tools"),
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    if tagged["input_ids"] != chat.input_ids or has_marks(row["messages"]):
        return chat  # a re-tokenized answer, or loss marks: only our own spans fit the ids
    runs, start = [], 0
    for trained, flags in groupby(tagged["assistant_masks"]):
        end = start + len(list(flags))
        runs += [range(start, end)] if trained else []
        start = end
    stops = set(stop_ids(tokenizer))
    # An earlier turn may end with another control token (gpt-oss); the last one may not.
    ends = set(control_pattern(tokenizer)[1].values())
    for run in runs:
        if not (stops if run == runs[-1] else ends) & set(chat.input_ids[run.start : run.stop]):
            return UserError(
                "a {% generation %} block of the chat template leaves out the end-of-turn token; "
                "move {% endgeneration %} after it"
            )
    untrained = chat.untrained_turns
    if turns == "last":
        runs = runs[-1:]
    elif len(runs) == len(answers):
        runs = [run for i, run in zip(answers, runs, strict=True) if i not in lost]
        untrained = len(lost)
    elif lost:  # blocks cannot be matched to turns
        runs = [run for run in runs if any(chat.trained[run.start : run.stop])]
    kept = {i for run in runs for i in run}
    return EncodedChat(chat.input_ids, [i in kept for i in range(len(chat.input_ids))], untrained)


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    tools: list[Any] | None = None,
) -> list[int]:
    """Return the ids from which an answer to `messages` is generated, as in training rows.

    Raises UserError if the last message is the assistant's, a message has a control token, or the
    template refuses the conversation.
    """
    if not messages or messages[-1].get("role") == "assistant":
        raise UserError("a prompt ends with a user or tool turn; cut the answer from it")
    messages = to_template_form(tokenizer, messages)
    check_no_control_tokens(tokenizer, messages)
    text = render(tokenizer, messages, tools=tools, prompt=True)
    check_context_rendered(tokenizer, messages, text=text, tools=tools)
    return _encode(tokenizer, [text])[0]


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Return the ids of texts that already contain their special tokens."""
    if not texts:
        return []
    options = {"return_attention_mask": False, "return_token_type_ids": False}
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False, **options)
    return list(encoded["input_ids"])


def _encode_after(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a text inside a chat: after an anchor, so that no prefix space is added."""
    for anchor in ("\n", "a", ":"):
        before, both = _encode(tokenizer, [anchor, anchor + text])
        if both[: len(before)] == before:
            return both[len(before) :]
    return _encode(tokenizer, [text])[0]
