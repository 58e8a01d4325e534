"""The program ``mdpo``, also as ``python -m mdpo``."""

import sys

from mdpo.program import outline
from mdpo.stops import ctrl_c_ends


def main() -> int:
    """Runs one command; returns the exit code, see ``mdpo.cli.main``."""
    ctrl_c_ends()
    if sys.argv[1:2] in ([], ["-h"], ["--help"], ["--version"]):
        outline().parse_args()
    try:
        from mdpo.cli import main as run
    except (ImportError, RuntimeError) as error:
        reason = _about_torchvision(error)
        if reason is None:
            raise
        print(f"error: {reason}", file=sys.stderr)
        return 1
    return run()


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
