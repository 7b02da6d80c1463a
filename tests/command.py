"""`tuitune` as the tests start it: its session is forked from their warm process, where `tests.warm` tells of one.

What its doctor finds of the libraries is what it found in an earlier test.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMAND = (sys.executable, __file__)


def main() -> int:
    from tuitune.__main__ import main

    if path := os.environ.get("TUITUNE_TEST_WARM"):
        from tests.warm import Probes, WarmSessions
        from tuitune.machine import doctor
        from tuitune.session import client

        client._spawn = WarmSessions(Path(path)).start  # type: ignore[assignment]
        doctor._probe = Probes(Path(path).parent).ask
    return main()


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    sys.exit(main())
