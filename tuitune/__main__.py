"""`tuitune` and `python -m tuitune`."""

import gc
import sys

_OBJECTS_TO_COLLECT = 10_000


def main() -> int:
    # Imports and screens make small objects by the thousand: as it is set, collecting takes a sixth of the app's time.
    gc.set_threshold(_OBJECTS_TO_COLLECT)
    from tuitune.paths import keep_others_out
    from tuitune.streams import settle_streams

    settle_streams()
    keep_others_out()
    from tuitune.commands.parser import run_command

    return run_command(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
