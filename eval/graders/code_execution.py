"""Tasks whose answers are programs: the program that an answer stands for, and its verdict.

A task file of one's own asks for it in its metadata, in templates over a document's fields; its
`doc_to_target` gives the tests:

    doc_to_text: "{{prompt}}"
    doc_to_target: "{{test}}\\ncheck({{entry_point}})"
    metadata: {version: 1.0, program: {start: "{{prompt}}", entry: "{{entry_point}}"}}

`start` stands before the answer, and `entry` is the function or class that the answer defines when
it is a whole program and no continuation of `start`.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import UndefinedError
from lm_eval.api.task import Task
from lm_eval.utils import apply_template
from tqdm import tqdm

from eval.graders.isolation import Isolation
from eval.graders.sandbox import Submission, run_program
from sft.errors import UserError

log = logging.getLogger(__name__)

# As HumanEval's authors call the share of problems that the one answer solves.
METRIC = "pass@1"
KEYS = {"start", "entry"}
_FENCED = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)


def needs_programs(config: Mapping[str, Any]) -> bool:
    """Whether a task's config asks that answers are run.

    Raises:
        UserError: it says so but not how, in `metadata.program`.
    """
    program = (config.get("metadata") or {}).get("program")
    if program is None and not config.get("unsafe_code"):
        return False
    if not isinstance(program, dict) or set(program) != KEYS:
        raise UserError(
            f"task {config.get('task')} runs programs that the model writes, and lm-eval would run "
            "them in this very process; give it as a file of your own in eval.task_dir, with "
            "metadata.program: {start: ..., entry: ...}"
        )
    return True


def program_of(answer: str, *, start: str, entry: str) -> str:
    """The program in an answer: `start` and what continues it, or `start` and a whole program.

    A whole program is the first fenced block that defines `entry`, or else an answer that does.
    Anything else continues the last, indented line of `start`, up to the first line that is not
    indented: there a base model has ended and goes on with something else.
    """
    defines = re.compile(rf"^(?:async +def|def|class) +{re.escape(entry)}\b", re.MULTILINE)
    blocks = [block for block in _FENCED.findall(answer) if defines.search(block)]
    if blocks or defines.search(answer):
        # `pass` fills the body that a start like LeetCode's leaves open, and else does nothing.
        return f"{start}pass\n{blocks[0] if blocks else answer}"
    first, *rest = answer.split("\n")
    end = next((i for i, line in enumerate(rest) if line and not line[0].isspace()), len(rest))
    return start + "\n".join([first, *rest[:end]])


def runs_programs(task: Task) -> bool:
    """Whether a loaded task's answers are run; `needs_programs` has seen its config."""
    return "program" in (task.get_config("metadata") or {})


def check_documents(task: Task) -> None:
    """Refuse a loaded task whose program cannot be put together from its documents.

    Raises:
        UserError: a template names a field that the documents lack.
    """
    try:
        _fields(task, task.eval_docs[0])
    except UndefinedError as error:
        raise UserError(
            f"task {task.task_name}: metadata.program: {error}; name one of "
            f"{', '.join(task.features)}"
        ) from None


def _fields(task: Task, document: Mapping[str, Any]) -> dict[str, str]:
    templates = task.get_config("metadata")["program"]
    return {key: apply_template(text, document) for key, text in templates.items()}


def scored(
    task: Task, samples: Sequence[Mapping[str, Any]], *, isolation: Isolation, label: str | None
) -> list[dict[str, Any]]:
    """lm-eval's samples, each with its program run: the program, the verdict and the reason."""
    rows = []
    for sample in tqdm(samples, f"{label}: programs", unit="program", disable=label is None):
        fields = _fields(task, sample["doc"])
        program = program_of(sample["resps"][0][0], **fields)
        submission = Submission(program, str(sample["target"]), **fields)
        outcome = run_program(submission, isolation=isolation)
        verdict = {
            METRIC: float(outcome.passed),
            "metrics": [METRIC],
            "filtered_resps": [program],
            "outcome": outcome.reason,
            "together": outcome.together,
        }
        rows.append({**sample, **verdict})
    if together := sum(row["together"] for row in rows):
        log.warning(
            "%s: the tests of %d of %d programs ran in the programs' own process, since they pass "
            "or compare objects that cannot be copied; such a program could forge its verdict",
            task.task_name,
            together,
            len(rows),
        )
    return rows
