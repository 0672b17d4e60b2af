"""Fixes the date that a chat template writes (Llama 3.2, gpt-oss, SmolLM3) for a whole run.

Such templates call `strftime_now`, which transformers answers with the clock. `run.date` is stored
on the tokenizer, and `apply_template`, the only caller of `apply_chat_template`, puts a macro of
that name before the template (transformers passes only plain data to templates, no functions). The
stored template is unchanged and writes the day of use.
"""

from collections.abc import Sequence
from datetime import date
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from sft.data.loss_marks import without_marks

CALL = "strftime_now"
# Directives of strftime; those of times give midnight.
_DIRECTIVES = "aAbBcdDeFGhHIjmMpRSTuUVwWxXyYzZ"
_PADDED = "deHIjmMSUVWy"


def set_date(tokenizer: PreTrainedTokenizerBase, day: str) -> None:
    """Render this tokenizer's template on `day` (YYYY-MM-DD) from now on."""
    tokenizer.template_date = day


def date_of(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the date that the tokenizer's template is rendered with; None for the clock's."""
    return getattr(tokenizer, "template_date", None)


def uses_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the template, or one of several, calls `strftime_now`."""
    return CALL in str(tokenizer.chat_template)


def apply_template(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, Any]],
    *,
    tools: list[Any] | None = None,
    day: str | None = None,
    **options: Any,
) -> Any:
    """Call `apply_chat_template` on `day`, or on the tokenizer's date."""
    day = day or date_of(tokenizer)
    if day is not None and uses_date(tokenizer):
        template = tokenizer.get_chat_template(None, tools)
        options["chat_template"] = _on_day(template, day)
    conversation: Any = without_marks(messages)  # upstream's type has no tool calls
    return tokenizer.apply_chat_template(conversation, tools=tools, **options)


def writes_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the prompt of a plain question contains the date."""
    question = [{"role": "user", "content": "?"}]
    written = {
        apply_template(tokenizer, question, day=day, tokenize=False, add_generation_prompt=True)
        for day in ("2001-02-03", "2014-05-26")  # different in every directive
    }
    return len(written) > 1


@lru_cache(maxsize=16)
def _on_day(template: str, day: str) -> str:
    """Return the template after a macro `strftime_now` that returns `day`."""
    when = date.fromisoformat(day)
    answers = [(f"%-{c}", when.strftime(f"%{c}").lstrip("0 ") or "0") for c in _PADDED]
    answers += [(f"%{c}", when.strftime(f"%{c}")) for c in _DIRECTIVES]
    filters = "".join(f" | replace('{directive}', '{text}')" for directive, text in answers)
    macro = f"{{%- macro {CALL}(format) -%}}{{{{ format{filters} | replace('%%', '%') }}}}"
    # Jinja's trim_blocks, which transformers sets, drops the line break after the block.
    return f"{macro}{{%- endmacro %}}\n{template}"
