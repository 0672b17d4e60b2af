"""Chat templates without a system turn: a task's description goes to the head of the user's.

lm-eval puts a task's `description` (MMLU has one) into a system turn. Templates such as Gemma 2's
raise an exception at it, others pass it over in silence. lm-eval then leaves the description out
(models/huggingface.py, `apply_chat_template`), so that one model is told what the questions are
about and another is not. Here both are told.
"""

import logging
from collections.abc import Sequence
from typing import Any

from eval.tasks.lm_eval_model import Engine
from sft.chat_template.render import TEMPLATE_ERRORS
from sft.errors import UserError

log = logging.getLogger(__name__)

# How an entry of results.json records it, under `description`.
IN_USER_TURN = "in the user turn"

History = Sequence[dict[str, str]]


class TurnedEngine(Engine):
    """An engine that asks every chat template in turns which it has, and notes what it did.

    Attributes:
        moved: whether a system turn went to the head of the first user turn.
        cut: prompts (of multiple choice: choices) whose beginning did not fit the window.
    """

    moved = False
    cut = 0

    @property
    def changes(self) -> dict[str, Any]:
        """What an entry of results.json records of how prompts were changed, if any were."""
        moved = {"description": IN_USER_TURN} if self.moved else {}
        left_out = {"left_out": len(self.unfit)} if self.unfit else {}
        return moved | left_out | ({"cut_prompts": self.cut} if self.cut else {})

    def _report_cuts(self, cut: int, total: int, *, task: str) -> None:
        super()._report_cuts(cut, total, task=task)
        self.cut += cut

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The conversation as text, its system turn in the user's where the template has none.

        Raises:
            UserError: the template refuses the conversation all the same.
        """
        system = [turn["content"] for turn in chat_history if turn["role"] == "system"]
        try:
            text = super().apply_chat_template(chat_history, add_generation_prompt)
            if all(said.strip() in text for said in system):
                return text
            reason = "leaves out a system turn"
        except TEMPLATE_ERRORS as error:
            if not system:
                raise _refused(chat_history, error) from None
            reason = f"refuses a system turn ({' '.join(str(error).split())})"
        merged = without_system(chat_history)
        try:
            text = super().apply_chat_template(merged, add_generation_prompt)
        except TEMPLATE_ERRORS as error:
            raise _refused(merged, error) from None
        if not self.moved:
            log.warning(
                "%s: the chat template %s, so the task's description is at the head of the first "
                "user turn",
                self.label or self.tokenizer_name,
                reason,
            )
        self.moved = True
        return text


def without_system(history: History) -> list[dict[str, str]]:
    """The conversation with its system turns at the head of the first user turn, which is the
    first turn where there is none of the user's."""
    told = "".join(turn["content"] for turn in history if turn["role"] == "system")
    turns = [dict(turn) for turn in history if turn["role"] != "system"]
    first = next((turn for turn in turns if turn["role"] == "user"), None)
    if first is None:
        return [{"role": "user", "content": told}, *turns]
    gap = "" if told[-1:].isspace() else "\n\n"
    first["content"] = told + gap + first["content"]
    return turns


def _refused(history: History, error: Exception) -> UserError:
    roles = ", ".join(turn["role"] for turn in history)
    return UserError(
        f"the chat template refuses a conversation of roles {roles} "
        f"({' '.join(str(error).split())}); set model.chat_template, or ask the model as plain text"
    )
