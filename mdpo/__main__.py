"""The program ``mdpo``, also as ``python -m mdpo``."""

import sys

from mdpo.stops import ctrl_c_ends


def main() -> int:
    """Runs one command; returns the exit code, see ``mdpo.cli.main``."""
    ctrl_c_ends()
    from mdpo.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
