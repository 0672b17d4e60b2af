"""Judge answers to open-ended questions (MT-Bench, AlignBench or your own) with a language model.

    python recipes/open_ended.py --model sft=RUN/1-sft-all/model --model dpo=RUN/3-dpo/model \\
        --questions question.jsonl --judge-url http://localhost:8000/v1 --judge-model NAME

Given several models, the first is also compared with each of the others, in both orders of a pair.
A model is a directory, a Hub id, or a run of sft_then_dpo.py (its last kept model). The API key, if
one is needed, is read from $OPENAI_API_KEY (--key-variable names another). Answers and judgments
are stored: the same command continues with the missing ones.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from sft import end_on_interrupt

    end_on_interrupt()

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sft.config.sections import EvalSection, ModelSection, RunSection, measuring_preset
from sft.errors import UserError
from sft.run.command import command_parser, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, answer and judge; the exit codes are those of `run_command`."""
    parser = command_parser(__doc__)
    parser.add_argument("--model", action="append", required=True, metavar="NAME=PATH")
    parser.add_argument(
        "--questions", required=True, help="MT-Bench's question.jsonl, AlignBench's"
    )
    parser.add_argument("--references", help="MT-Bench's reference_answer/*.jsonl")
    parser.add_argument(
        "--judge-url", help="up to /v1; absent: answers are generated but not judged"
    )
    parser.add_argument("--judge-model", default="", help="the model's name at the endpoint")
    parser.add_argument("--key-variable", default="OPENAI_API_KEY", help="variable with the key")
    parser.add_argument("--workers", type=int, default=4, help="requests at once (4)")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds a reply (120)")
    parser.add_argument("--tries", type=int, default=5, help="of each request (5)")
    parser.add_argument("--judge-tokens", type=int, default=1024, help="of a reply (1024)")
    parser.add_argument(
        "--prices", type=float, nargs=2, metavar=("IN", "OUT"), help="per 1M tokens"
    )
    parser.add_argument("--cap", type=int, default=1024, help="tokens of an answer (1024)")
    parser.add_argument("--vllm", metavar="PYTHON", help="answer with the vLLM of this Python")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--to", default="runs/open-ended", help="output folder")
    given = parser.parse_args(argv)
    return run_command(lambda: run(given))


def run(given: argparse.Namespace) -> None:
    """Answer with each model, then judge, then print and write the tables."""
    from accelerate import PartialState

    from eval.backends.loading import check_backend
    from eval.open_ended.questions import read_questions, stored_answers
    from sft.chat_template.tokenizer_coverage import check_row_coverage
    from sft.context import RunContext
    from sft.model.loading import check_model, load_tokenizer
    from sft.model.placement import choose_placement
    from sft.run.console import start_logging
    from sft.run.directory import open_run
    from sft.run.directory_checks import check_run_dir
    from sft.run.run_record import with_date, write_run_record

    start_logging()
    named = _named(given.model)
    if given.workers < 1 or given.tries < 1:
        raise UserError(f"--workers {given.workers} and --tries {given.tries} must be positive")
    questions = read_questions(given.questions, references=given.references)
    sections = {name: ModelSection(path) for name, path in named.items()}
    preset = measuring_preset(
        RunSection(given.to, given.seed),
        next(iter(sections.values())),
        EvalSection(backend="vllm", vllm_python=given.vllm) if given.vllm else EvalSection(),
    )
    check_run_dir(preset, read=[*named.values(), given.questions, given.references or ""])
    # Before any model answers, for hours, to a judge that cannot be reached.
    judge = _connect_judge(given) if given.judge_url else None
    paths = {name: check_model(section) for name, section in sections.items()}
    preset = with_date(preset, models=list(paths.values()))
    date = preset.run.date
    tokenizers = {name: load_tokenizer(paths[name], sections[name], date=date) for name in named}
    asked = [{"messages": [{"content": turn} for turn in one.turns]} for one in questions]
    for name, tokenizer in tokenizers.items():
        check_row_coverage(tokenizer, asked, most=sections[name].max_unknown, name=given.questions)
    placement = choose_placement(preset.model)
    check_backend(preset.eval, placement)
    with open_run(preset, ways_on="give --to a new folder") as folder:
        write_run_record(folder, preset)
        answers = {}
        for name, tokenizer in tokenizers.items():
            context = RunContext.of(preset, folder=folder, tokenizer=tokenizer, placement=placement)
            answers[name] = stored_answers(
                name, paths[name], context, questions, cap=given.cap, engine=preset.eval
            )
        if not PartialState().is_main_process:
            return  # one process asks the judge
        if judge is None:
            print(f"answers    {folder / 'answers'}; judge them with --judge-url")
            return
        _judge_answers(given, questions, answers, judge=judge, folder=folder)


def _connect_judge(given: argparse.Namespace) -> Callable[..., Any]:
    """Return the judge at the endpoint, after a request that tests address, key and name."""
    from eval.open_ended.judge_endpoint import Endpoint, ask

    endpoint = Endpoint(
        given.judge_url,
        given.judge_model,
        key_variable=given.key_variable,
        timeout=given.timeout,
        tries=given.tries,
    )
    judge = partial(ask, endpoint, max_tokens=given.judge_tokens)
    judge([{"role": "user", "content": "Say OK."}])  # a mistake shows before hours of answers
    return judge


def _judge_answers(
    given: argparse.Namespace,
    questions: Sequence[Any],
    answers: dict[str, Any],
    *,
    judge: Callable[..., Any],
    folder: Path,
) -> None:
    """Grade each answer, compare the first model with the others, write and print the tables."""
    from tqdm import tqdm

    from eval.open_ended.judge_prompts import comparing, grading
    from eval.open_ended.judgments import grade_table, judge_all, pair_table, usage
    from eval.open_ended.tables import open_ended_table
    from sft.run.terminal import SafeConsole
    from sft.system.atomic_files import write_json

    first, *others = answers
    items = grading(questions, answers, judge=given.judge_model)
    for other in others:
        items += comparing(questions, answers, first=first, second=other, judge=given.judge_model)
    kept = folder / "judgments.jsonl"
    with tqdm(total=len(items), desc="judging", unit="verdict") as bar:
        rows = judge_all(items, judge, path=kept, workers=given.workers, progress=bar.update)
    grades = grade_table(rows)
    pairs = {f"{first} -> {other}": pair_table(rows, first=first, second=other) for other in others}
    used = usage(rows, prices=tuple(given.prices) if given.prices else None)
    judge_facts = {"url": given.judge_url, "model": given.judge_model}
    results = {"judge": judge_facts, "grades": grades, "pairs": pairs, "usage": used}
    write_json(folder / "open_ended.json", results)
    SafeConsole().show(open_ended_table(grades, pairs, used, judge=given.judge_model))
    print(f"judgments  {kept}\nresults    {folder / 'open_ended.json'}")


def _named(models: Sequence[str]) -> dict[str, str]:
    """Return paths by name; each name is used once and valid as a folder's."""
    named: dict[str, str] = {}
    for text in models:
        name, equals, path = text.partition("=")
        if not equals or not path or not re.fullmatch(r"[\w.-]+", name) or name in named:
            raise UserError(
                f"--model {text!r} is not of the form NAME=PATH, with a new name of letters, "
                "digits, dots, underscores and hyphens"
            )
        named[name] = path
    return named


if __name__ == "__main__":
    sys.exit(main())
