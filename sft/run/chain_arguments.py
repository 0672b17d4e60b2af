"""Command line of the chain, checked before the imports that take seconds."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from sft.config.preset import CHECKOUT, load_preset
from sft.config.sections import Preset
from sft.run.command import command_parser, run_command

QUICKSTART = str(CHECKOUT / "recipes" / "presets" / "quickstart.yaml")


@dataclass(frozen=True)
class ChainArguments:
    """The arguments of `recipes/sft_then_dpo.py`: a preset's path, overrides and flags."""

    path: str
    overrides: tuple[str, ...]
    dry_run: bool
    fresh: bool
    rerun: bool

    def preset(self) -> Preset:
        """Return the preset with the overrides applied.

        Raises:
            UserError: the preset or an override breaks a rule.
        """
        return load_preset(self.path, overrides=self.overrides)


def parse_arguments(argv: Sequence[str] | None, *, description: str | None) -> ChainArguments:
    """Parse the command line; exit with code 2 where argparse refuses it."""
    parser = command_parser(description)
    parser.add_argument("preset", nargs="?", default=QUICKSTART, help="a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--dry-run", action="store_true", help="check and count, train nothing")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--fresh", action="store_true", help="remove what the run wrote first")
    again.add_argument("--rerun", action="store_true", help="redo what a changed preset touches")
    parser.add_argument(
        "--allow-code-execution",
        action="store_true",
        help="let code tasks run the programs that the models write, confined",
    )
    parser.add_argument(
        "--allow-unconfined-code",
        action="store_true",
        help="and run them with your rights where nothing on this machine confines them",
    )
    given = parser.parse_intermixed_args(argv)
    path, overrides = given.preset, list(given.overrides)
    if "=" in path:  # overrides without a preset apply to the quickstart
        path, overrides = QUICKSTART, [path, *overrides]
    if given.allow_code_execution:
        overrides.append("eval.allow_code_execution=true")
    if given.allow_unconfined_code:
        overrides.append("eval.allow_unconfined_code=true")
    return ChainArguments(path, tuple(overrides), given.dry_run, given.fresh, given.rerun)


def exit_on_mistakes(description: str | None) -> None:
    """Check the command line and the preset of this process; exit with code 2 on a mistake.

    It is called before the slow imports, so that a mistake is reported at once.
    """
    arguments = parse_arguments(None, description=description)

    if code := run_command(arguments.preset, resumable=False):
        sys.exit(code)
