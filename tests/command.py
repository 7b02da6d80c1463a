"""`tuitune` as the tests start it: what it starts that needs the libraries is forked, as `tests.forking` tells.

So is a command that needs the libraries itself.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMAND = (sys.executable, __file__)
_WITH_LIBRARIES = {"inspect", "audit", "estimate", "export"}


def main() -> int:
    """The exit status of the command of `sys.argv`."""
    from tests.forking import VARIABLE, ForkedPopen, Popen

    if VARIABLE in os.environ:
        if _WITH_LIBRARIES & set(sys.argv[1:2]):
            return ForkedPopen([sys.executable, "-P", "-m", "tuitune", *sys.argv[1:]]).wait()
        subprocess.Popen = Popen  # type: ignore[misc]
    from tuitune.__main__ import main

    return main()


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    sys.exit(main())
