"""The one error a user's mistake raises."""


class InputError(ValueError):
    """Bad input: one sentence with the argument, the value, what is allowed and what to do.

    The command line prints it and ends with exit code 2.
    """
