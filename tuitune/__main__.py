"""`tuitune` and `python -m tuitune`."""

import sys


def main() -> int:
    from tuitune.paths import keep_others_out
    from tuitune.streams import settle_streams

    settle_streams()
    keep_others_out()
    from tuitune.commands.parser import run_command

    return run_command(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
