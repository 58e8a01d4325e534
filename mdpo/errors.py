"""What goes wrong in a way that a user can mend: the command line prints these without a traceback."""


class InputError(ValueError):
    """Bad input. The message names the file, row or key, what is wrong with it and what to do."""


class TrainingError(RuntimeError):
    """A run that cannot go on. The message names the step, the examples and where the last good state is.

    said: whether another process of the run says so.
    """

    said = False


class OutputError(RuntimeError):
    """A result that could not be written. The message names it, why, what is kept and how to go on."""
