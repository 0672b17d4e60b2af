"""Render conversations with templates that have no system turn: it is merged into the user turn.

lm-eval puts the `description` of a task (MMLU has one) into a system turn. Templates such as Gemma
2's raise an exception at it, others ignore it. lm-eval then drops the description
(models/huggingface.py, `apply_chat_template`), so models would get different prompts.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from sft.chat_template.render import TEMPLATE_ERRORS
from sft.chat_template.template_date import apply_template
from sft.errors import UserError

# Value of `description` in an entry of results.json.
IN_USER_TURN = "in the user turn"

History = Sequence[dict[str, str]]


def render_history(
    tokenizer: PreTrainedTokenizerBase, history: History, *, add_generation_prompt: bool
) -> tuple[str, str | None]:
    """Return the conversation as text, and the reason if its system turn was merged.

    Without a generation prompt the last turn is left open.

    Raises:
        UserError: the template refuses the conversation even without a system turn.
    """
    system = [turn["content"] for turn in history if turn["role"] == "system"]
    try:
        text = _render(tokenizer, history, add_generation_prompt)
        if all(content.strip() in text for content in system):
            return text, None
        reason = "leaves out a system turn"
    except TEMPLATE_ERRORS as error:
        if not system:
            raise _refused(history, error) from None
        reason = f"refuses a system turn ({' '.join(str(error).split())})"
    merged = without_system(history)
    try:
        return _render(tokenizer, merged, add_generation_prompt), reason
    except TEMPLATE_ERRORS as error:
        raise _refused(merged, error) from None


def _render(tokenizer: PreTrainedTokenizerBase, history: History, add_prompt: bool) -> str:
    text: str = apply_template(
        tokenizer,
        history,
        tokenize=False,
        add_generation_prompt=add_prompt,
        continue_final_message=not add_prompt,
    )
    return text


def without_system(history: History) -> list[dict[str, str]]:
    """Move system turns to the start of the first user turn, which is added if there is none."""
    system = "".join(turn["content"] for turn in history if turn["role"] == "system")
    turns = [dict(turn) for turn in history if turn["role"] != "system"]
    first = next((turn for turn in turns if turn["role"] == "user"), None)
    if first is None:
        return [{"role": "user", "content": system}, *turns]
    gap = "" if system[-1:].isspace() else "\n\n"
    first["content"] = system + gap + first["content"]
    return turns


def _refused(history: History, error: Exception) -> UserError:
    roles = ", ".join(turn["role"] for turn in history)
    return UserError(
        f"the chat template refuses a conversation of roles {roles} "
        f"({' '.join(str(error).split())}); set model.chat_template, or evaluate on plain text"
    )
