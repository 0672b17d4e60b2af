"""Renders a conversation with the tokenizer's chat template."""

from collections.abc import Sequence
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from sft.chat_template.template_date import apply_template
from sft.errors import UserError
from sft.system.time_limit import cpu_seconds

Message = dict[str, Any]

# Exceptions of a template's code on a conversation that its author did not expect.
TEMPLATE_ERRORS = (
    *(jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError),
    *(ArithmeticError, RecursionError, MemoryError, TimeoutError),
)
# Limits far above any conversation: seconds of CPU time, and characters.
PATIENCE, LONGEST = 20.0, 1 << 28


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    tools: list[Any] | None = None,
    prompt: bool,
) -> str:
    """Render a conversation to text; `prompt` adds the generation prompt.

    Raises UserError if there is no template, it refuses the conversation, or it does not end.
    """
    if tokenizer.chat_template is None:
        raise UserError(
            "the tokenizer has no chat template; set model.chat_template to a .jinja file or call "
            "ensure_template first"
        )
    try:
        # transformers renders in jinja2's sandbox, which bounds neither time nor size.
        with cpu_seconds(PATIENCE):
            text: str = apply_template(
                tokenizer, messages, tools=tools, tokenize=False, add_generation_prompt=prompt
            )
        if len(text) > LONGEST:
            raise ValueError(f"it writes {len(text):,} characters")
        return text
    except TEMPLATE_ERRORS as error:
        roles = ", ".join(str(message.get("role")) for message in messages) or "none"
        raise UserError(
            f"the chat template refuses a conversation of roles {roles}: "
            f"{' '.join(str(error).split())}; change the row or the template"
        ) from None
