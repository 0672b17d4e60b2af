"""The error that the user can correct: shown as one sentence, without a traceback."""


class UserError(ValueError):
    """A mistake that the user can mend: one sentence with the value, the rule and the remedy.

    Commands print it without a traceback and exit with code 2.
    """
