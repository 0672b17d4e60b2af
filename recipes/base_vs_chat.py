"""Measure any two models, the base few-shot and the chat model in its template, and compare them.

    python recipes/base_vs_chat.py --base BASE --chat CHAT --tasks gsm8k,hellaswag
    python recipes/base_vs_chat.py --base B --chat C --task-dir DIR --tasks a,b --prompts FILE

What is measured is kept: start the same command again and only what is missing is done. Other tasks
or settings want a folder of their own (--to).
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from sft.command import run_command
from sft.config import (
    DpoStage,
    EvalSection,
    ModelSection,
    Preset,
    RepetitionSection,
    RunSection,
    SftStage,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and compare; the exit codes are those of `run_command`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", required=True, help="directory or hub id of the base model")
    parser.add_argument("--chat", required=True, help="directory or hub id of the chat model")
    parser.add_argument("--tasks", default="", help="lm-eval task names, comma-separated")
    parser.add_argument("--task-dir", help="folder of task YAML files of your own")
    parser.add_argument("--prompts", help="file of prompts for the repetition rate")
    parser.add_argument("--cap", type=int, default=400, help="tokens of an answer (400)")
    parser.add_argument("--base-shots", type=int, default=5)
    parser.add_argument("--chat-shots", type=int, default=0)
    parser.add_argument("--limit", type=int, help="documents of each task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--to", default="runs/base-vs-chat", help="folder for what comes out")
    given = parser.parse_args(argv)
    preset = Preset(
        run=RunSection(given.to, given.seed),
        model=ModelSection(given.base),
        sft_all=SftStage(enabled=False),
        sft_dialogue=SftStage(enabled=False),
        dpo=DpoStage(enabled=False),
        eval=EvalSection(
            tasks=[task for task in given.tasks.split(",") if task],
            task_dir=given.task_dir,
            limit=given.limit,
            base_shots=given.base_shots,
            chat_shots=given.chat_shots,
            repetition=RepetitionSection(given.prompts, given.cap),
        ),
    )
    return run_command(lambda: compare(preset, chat=given.chat))


def compare(preset: Preset, *, chat: str) -> None:
    """Measure both models into the run folder and write the report."""
    from eval.measure import check_measures, measure, write_results
    from eval.tables import console_table
    from sft.console import farewell, start_logging
    from sft.model import check_model, choose_placement, load_tokenizer
    from sft.run import open_run, write_environment
    from sft.setting import Setting

    start_logging()
    sections = {"base": preset.model, "chat": replace(preset.model, name_or_path=chat)}
    paths = {name: check_model(section) for name, section in sections.items()}
    check_measures(preset.eval)
    tokenizers = {name: load_tokenizer(paths[name], sections[name]) for name in sections}
    placement = choose_placement(preset.model)
    with open_run(preset, ways_on="give --to a new folder") as folder:
        write_environment(folder, preset)
        for name, tokenizer in tokenizers.items():
            setting = Setting.of(preset, folder=folder, tokenizer=tokenizer, placement=placement)
            measure(name, paths[name], setting, preset.eval)
        results = write_results(folder, list(sections))
        farewell(console_table(results), folder=folder, model=paths["chat"])


if __name__ == "__main__":
    sys.exit(main())
