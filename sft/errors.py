"""The error that a user can correct."""


class UserError(ValueError):
    """A mistake of the user, in one sentence with the value, the rule and the remedy.

    Commands print it without a traceback and exit with code 2.
    """
