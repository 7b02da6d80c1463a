"""A helper process ends with the process that started it, also while it is deep in a library or in a user's code."""

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Have the system kill this process when the thread that started it ends (Linux; elsewhere nothing is done).

    One that has ended before this is called is not noticed: the end of standard input tells of it then.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
