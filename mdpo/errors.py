"""The one exception for what a user can mend: the command line prints it without a traceback."""


class InputError(ValueError):
    """Bad input. The message names the file, row or key, what is wrong with it and what to do."""
