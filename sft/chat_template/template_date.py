"""One date for all renderings of a chat template that writes today's (Llama 3.2, gpt-oss, SmolLM3).

Such templates call `strftime_now`, which transformers answers with the clock. A run has one date,
`run.date`: it is kept on the tokenizer, and `apply_template`, the only caller of transformers'
`apply_chat_template`, puts a macro of that name in front of the template. (transformers passes
plain data alone to a template, so a function cannot be given as an argument.) The stored template
stays as it is and writes the day on which it is used.
"""

from collections.abc import Sequence
from datetime import date
from functools import lru_cache
from typing import Any

from sft.data.loss_marks import without_marks

CALL = "strftime_now"
# Directives of strftime that a date answers; of times, midnight's.
_DIRECTIVES = "aAbBcdDeFGhHIjmMpRSTuUVwWxXyYzZ"
_PADDED = "deHIjmMSUVWy"


def set_date(tokenizer: Any, day: str) -> None:
    """Render this tokenizer's template on `day` (YYYY-MM-DD) from now on."""
    tokenizer.template_date = day


def date_of(tokenizer: Any) -> str | None:
    """The date that the tokenizer's template is rendered with; None: the clock's."""
    return getattr(tokenizer, "template_date", None)


def asks_date(tokenizer: Any) -> bool:
    """Whether the template, or one of several, can write the date."""
    template = tokenizer.chat_template
    texts = template.values() if isinstance(template, dict) else [template or ""]
    return any(CALL in text for text in texts)


def apply_template(
    tokenizer: Any,
    messages: Sequence[dict[str, Any]],
    *,
    tools: list[Any] | None = None,
    day: str | None = None,
    **options: Any,
) -> Any:
    """transformers' `apply_chat_template`, on the tokenizer's date.

    Args:
        day: another date than the tokenizer's own.
        options: upstream's, such as `tokenize` and `add_generation_prompt`.
    """
    day = day or date_of(tokenizer)
    if day is not None and asks_date(tokenizer):
        template = tokenizer.get_chat_template(None, tools)
        options["chat_template"] = _on_day(template, day)
    return tokenizer.apply_chat_template(without_marks(messages), tools=tools, **options)


def writes_date(tokenizer: Any) -> bool:
    """Whether the prompt of a plain question shows the date."""
    question = [{"role": "user", "content": "?"}]
    written = {
        apply_template(tokenizer, question, day=day, tokenize=False, add_generation_prompt=True)
        for day in ("2001-02-03", "2014-05-26")  # which differ in every part
    }
    return len(written) > 1


@lru_cache(maxsize=16)
def _on_day(template: str, day: str) -> str:
    """The template behind a macro `strftime_now` that answers with `day`."""
    when = date.fromisoformat(day)
    answers = [(f"%-{c}", when.strftime(f"%{c}").lstrip("0 ") or "0") for c in _PADDED]
    answers += [(f"%{c}", when.strftime(f"%{c}")) for c in _DIRECTIVES]
    filters = "".join(f" | replace('{directive}', '{text}')" for directive, text in answers)
    macro = f"{{%- macro {CALL}(format) -%}}{{{{ format{filters} | replace('%%', '%') }}}}"
    # transformers drops the line break behind a block, so nothing stands before the template.
    return f"{macro}{{%- endmacro %}}\n{template}"
