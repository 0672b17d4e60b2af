"""Extracts the program from an answer and grades it by its tests.

A local task file enables this in its metadata, with templates over a document's fields; its
`doc_to_target` renders the tests:

    doc_to_text: "{{prompt}}"
    doc_to_target: "{{test}}\\ncheck({{entry_point}})"
    metadata: {version: 1.0, program: {start: "{{prompt}}", entry: "{{entry_point}}"}}

`start` is the source before the answer. An answer that defines `entry`, a function or class, is a
complete program; any other continues `start`.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import UndefinedError
from lm_eval.api.task import Task
from lm_eval.utils import apply_template
from tqdm import tqdm

from eval.graders.sandbox import Submission, run_program
from eval.graders.sandbox_command import Isolation
from sft.errors import UserError

log = logging.getLogger(__name__)

# HumanEval's name for the share of problems that a single answer solves.
METRIC = "pass@1"
KEYS = {"start", "entry"}
_FENCED = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)


def needs_programs(config: Mapping[str, Any]) -> bool:
    """Return whether a task's config requires running the answers.

    Raises:
        UserError: `metadata.program` lacks its keys.
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
    """Return the program in an answer, after `start`.

    The first fenced block that defines `entry`, or an answer that does, is a complete program. Any
    other answer continues the last line of `start`.
    """
    defines = re.compile(rf"^(?:async +def|def|class) +{re.escape(entry)}\b", re.MULTILINE)
    blocks = [block for block in _FENCED.findall(answer) if defines.search(block)]
    if blocks or defines.search(answer):
        # `pass` completes a function without a body at the end of `start`, as LeetCode's have.
        return f"{start}pass\n{blocks[0] if blocks else answer}"
    # A base model has finished the function at the first line without indentation.
    first, *rest = answer.split("\n")
    end = next((i for i, line in enumerate(rest) if line and not line[0].isspace()), len(rest))
    return start + "\n".join([first, *rest[:end]])


def runs_programs(task: Task) -> bool:
    """Return whether a loaded task's answers are run; `needs_programs` checked its config."""
    return "program" in (task.get_config("metadata") or {})


def check_documents(task: Task) -> None:
    """Check that the templates of `metadata.program` can be rendered.

    Raises:
        UserError: the documents lack a field.
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


def score_samples(
    task: Task, samples: Sequence[Mapping[str, Any]], *, isolation: Isolation, label: str | None
) -> list[dict[str, Any]]:
    """Run the program of each of lm-eval's samples; return the samples with their verdicts."""
    rows = []
    for sample in tqdm(samples, f"{label}: programs", unit="program", disable=label is None):
        fields = _fields(task, sample["doc"])
        program = program_of(sample["resps"][0][0], **fields)
        submission = Submission(program, str(sample["target"]), **fields)
        outcome = run_program(submission, isolation=isolation)
        grade = {
            METRIC: float(outcome.passed),
            "metrics": [METRIC],
            "filtered_resps": [program],
            "outcome": outcome.reason,
            "together": outcome.together,
        }
        rows.append({**sample, **grade})
    if together := sum(row["together"] for row in rows):
        log.warning(
            "%s: the tests of %d of %d programs ran in the programs' own process, since they pass "
            "or compare objects that cannot be copied; such a program could forge its verdict",
            task.task_name,
            together,
            len(rows),
        )
    return rows
