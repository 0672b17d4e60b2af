"""Show the first row of each kind that a preset trains on, with the trained tokens marked.

    python recipes/preview.py PRESET [section.key=value ...]

Reads the rows and the tokenizer, loads no weights.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from sft import end_on_interrupt

    end_on_interrupt()

import sys
from collections.abc import Sequence

from sft.config.preset import load_preset
from sft.run.command import command_parser, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and print the rows; the exit codes are those of `run_command`."""
    parser = command_parser(__doc__, preset=True)
    given = parser.parse_intermixed_args(argv)

    def work() -> None:
        from sft.planning.preview import preview

        preview(load_preset(given.preset, overrides=given.overrides))

    return run_command(work, resumable=False)


if __name__ == "__main__":
    sys.exit(main())
