"""The command line: ``mdpo COMMAND ...``."""

from mdpo.stops import ctrl_c_ends

if __name__ == "__main__":
    ctrl_c_ends()

import sys
from collections.abc import Sequence

from mdpo.commands import parse


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code, see ``mdpo.running.run``. Leaves the program, as argparse does, after a
    help text and where the arguments are not a command with its options.
    """
    options = parse(list(sys.argv[1:] if arguments is None else arguments))
    try:
        # PyTorch and transformers take seconds to import: only now that there is something to run.
        from mdpo.running import run

        options.run.load()
    except (ImportError, RuntimeError) as error:
        reason = _about_torchvision(error)
        if reason is None:
            raise
        print(f"error: {reason}", file=sys.stderr)
        return 1
    return run(options)


def _about_torchvision(error: BaseException | None) -> str | None:
    """What to do about a torchvision that was built for another PyTorch, which transformers imports where there is one,
    and hides behind an error of its own; None where it is something else."""
    while error is not None:
        if "torchvision" in str(error):
            return (
                "torchvision does not go with the PyTorch that is installed "
                f"({str(error).splitlines()[0][:200]}); install both in one command from one index, or remove it: "
                "pip uninstall torchvision"
            )
        error = error.__cause__ or error.__context__
    return None


if __name__ == "__main__":
    sys.exit(main())
