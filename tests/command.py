"""`tuitune` as the tests start it: its session is forked from their warm process, where `tests.warm` tells of one.

So is a command that needs the libraries itself. What its doctor finds of the libraries is what it found in an earlier
test.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMAND = (sys.executable, __file__)
_WITH_LIBRARIES = {"inspect", "audit", "estimate", "export"}


def main() -> int:
    """The exit status of the command of `sys.argv`, done in this process."""
    from tuitune.__main__ import main

    if path := os.environ.get("TUITUNE_TEST_WARM"):
        from tests.warm import Probes, WarmSessions
        from tuitune.machine import doctor
        from tuitune.session import client

        client._spawn = WarmSessions(Path(path)).start  # type: ignore[assignment]
        doctor._probe = Probes(Path(path).parent).ask
    return main()


def done_by_the_warm_process(path: Path) -> int | None:
    """The exit status of the command, None where it is to be done in this process."""
    from tests.warm import WarmSessions

    return WarmSessions(path).command(sys.argv[1:]) if _WITH_LIBRARIES & set(sys.argv[1:2]) else None


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    warm_path = os.environ.get("TUITUNE_TEST_WARM")
    status = done_by_the_warm_process(Path(warm_path)) if warm_path else None
    sys.exit(main() if status is None else status)
