"""A session process that holds runs whose records are written already, so that many apps can be shown them quickly.

    python -m tests.screens.holding RUN...

Each run gets a server of its own, as a session has one run; they share the imported libraries. It says `ready` when
all can be attached to, and ends with its standard input.
"""

import asyncio
import sys
from pathlib import Path

from tuitune.machine.environment import prepare_environment
from tuitune.runs.folder import Run, RunWriter
from tuitune.session.client import Session
from tuitune.session.protocol import new_socket_path
from tuitune.session.server import Server


async def hold(runs: list[Run]) -> None:
    held = [await _hold(run) for run in runs]
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for server, writer, client, serving in held:
        writer.close()
        await client.close()
        server.ended.set()
        await serving
        server.socket_path.unlink(missing_ok=True)


async def _hold(run: Run) -> tuple[Server, RunWriter, Session, asyncio.Task[None]]:
    """Serve the run until the client that is returned goes."""
    server = Server(new_socket_path())
    server.jobs.run = run
    serving = asyncio.create_task(server.run())
    while not server.socket_path.exists():  # noqa: ASYNC110  (nobody is told of it, clients ask)
        await asyncio.sleep(0.05)
    writer = RunWriter(run)
    writer.announce(server.socket_path)
    client = await Session.attach(run)  # before the libraries are imported: a session whose client is late ends
    while not server.ready:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    return server, writer, client, serving


if __name__ == "__main__":
    prepare_environment()
    asyncio.run(hold([Run(Path(folder)) for folder in sys.argv[1:]]))
