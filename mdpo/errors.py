"""What goes wrong in a way that a user can mend: the command line prints these without a traceback."""


class _Said(Exception):
    """said: whether another process of the run says so; None where that is not known."""

    said: bool | None = None


class InputError(_Said, ValueError):
    """Bad input. The message names the file, row or key, what is wrong with it and what to do."""


class TrainingError(_Said, RuntimeError):
    """A run that cannot go on. The message names the step, the examples and where the last good state is."""


class OutputError(_Said, RuntimeError):
    """A result that could not be written. The message names it, why, what is kept and how to go on."""
