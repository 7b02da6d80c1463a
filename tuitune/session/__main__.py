"""Start a session process: `python -m tuitune.session SOCKET`; the client does this, users do not."""

import sys
from pathlib import Path

from tuitune.session.server import serve

if __name__ == "__main__":
    sys.exit(serve(Path(sys.argv[1])))
