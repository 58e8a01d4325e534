"""One stage in a process of its own, so that it leaves no memory behind; it ends when the loop's process does.

``python -m mdpo.loop.stage PID WORDS``, PID being the loop's process, does what ``mdpo WORDS`` does.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> int:
    parent = int(sys.argv.pop(1))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # gone before the call
            return 128 + signal.SIGTERM
    from mdpo.__main__ import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
