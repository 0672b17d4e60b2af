"""Print the first row of each kind as it is trained, for `recipes/preview.py`."""

import sys
from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedTokenizerBase

from sft.chat_template.encoding import EncodedChat
from sft.config.sections import Preset
from sft.data.sources import read_sft
from sft.errors import UserError
from sft.model.loading import context_window, load_tokenizer, resolve_model_path
from sft.planning.mask_display import marking, print_chat
from sft.planning.stages import fit_lengths, split_length
from sft.run.run_record import with_date
from sft.tokenization.truncation import TruncatedRow, encode_and_split, truncate_row


def preview(preset: Preset) -> None:
    """Print the first row of each kind that fits the stages' `max_length`, with its trained tokens
    marked, and the number of longer rows before it."""
    path = resolve_model_path(preset.model.name_or_path, revision=preset.model.revision)
    tokenizer = load_tokenizer(
        path,
        preset.model,
        date=with_date(preset).run.date,
        system_prompt=preset.data.system_prompt,
    )
    rows = read_sft(preset.data.sft, on_error=preset.data.on_error).rows
    marks = marking(sys.stdout)[1]
    print(f"{len(rows):,} rows, the first of each kind below; trained tokens are {marks}")
    length = split_length(fit_lengths(preset, context_window(path, preset.model)))
    for kind in dict.fromkeys(row["kind"] for row in rows):
        of_kind = (row for row in rows if row["kind"] == kind)
        origin, piece, left_out = first_trained(tokenizer, of_kind, preset=preset, length=length)
        too_long = f"longer than max_length={length} and left out"
        if piece is None:
            print(f"\n{kind}: all {left_out:,} rows are {too_long}")
            continue
        print(f"\n{origin} ({kind})")
        if left_out:
            print(f"(rows of this kind before it, {too_long}: {left_out:,})")
        print_chat(tokenizer, EncodedChat(piece.input_ids, piece.trained))
        if piece.cut:
            print(f"(cut at max_length={length})")


def first_trained(
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[dict[str, Any]],
    *,
    preset: Preset,
    length: int | None,
) -> tuple[str, TruncatedRow | None, int]:
    """Return the origin of the first row that `data.too_long` does not leave out, its first piece
    (None if there is no such row), and the number of rows before it."""
    too_long = preset.data.too_long
    split_at = length if too_long == "split" else None
    left_out = 0
    for row in rows:
        encoded = encode_and_split(tokenizer, [row], turns=preset.data.turns, split_at=split_at)
        for _, chat in encoded:
            if isinstance(chat, UserError):
                raise UserError(f"{row['origin']}: {chat}")
            bos = tokenizer.bos_token_id
            pieces = truncate_row(chat, max_length=length, too_long=too_long, bos=bos)
            if pieces:
                return row["origin"], pieces[0], left_out
        left_out += 1
    return "", None, left_out
