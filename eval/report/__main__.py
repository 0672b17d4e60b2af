"""`python -m eval.report RUN [PICTURE.png]`: write the report of a finished run again."""

if __name__ == "__main__":  # before the imports, which take seconds
    from sft import end_on_interrupt

    end_on_interrupt()

import sys

from eval.report.report import main

if __name__ == "__main__":
    sys.exit(main())
