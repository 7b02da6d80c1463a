"""Clients of a session that send anything, take nothing, or come and go: the session and its run go on."""

import asyncio
import os
import random
from pathlib import Path

import psutil
import pytest

from tests.engine.sessions import ended, seen, start_run
from tests.faults.sweep import Record
from tests.faults.test_sweeps import Survived
from tuitune.recipe import Recipe
from tuitune.runs.events import Event, Finished, Step
from tuitune.session.client import Session
from tuitune.session.connection import Client
from tuitune.session.protocol import MAX_LINE_BYTES, encode
from tuitune.session.request import VERSION
from tuitune.session.run_requests import Follow, Save, Status, Stop

HELLO = encode({"version": VERSION})


def garbage() -> dict[str, bytes]:
    chance = random.Random(3407)
    status = b'{"id": 1, "command": "status", "arguments": {}}\n'
    return {
        "nothing": b"",
        "random bytes": chance.randbytes(100_000),
        "zeros": bytes(100_000),
        "no greeting": status,
        "a request in the greeting's place, cut": status[:20],
        "no JSON": HELLO + b"no JSON\n",
        "no object": HELLO + b"[]\n",
        "null": HELLO + b"null\n",
        "a number that is none": HELLO + b"NaN\n",
        "deep lists": HELLO + b"[" * 200_000 + b"\n",
        "deep objects": HELLO + b'{"a":' * 200_000 + b"\n",
        "half a character": HELLO + b'{"id": 1, "command": "\xff\xc3"}\n',
        "a lone surrogate": HELLO + b'{"id": 1, "command": "\\ud800"}\n',
        "a line too long": HELLO + b"x" * (MAX_LINE_BYTES + 2),
        "a request cut short": HELLO + status[:-10],
        "no command": HELLO + b'{"id": 1}\n',
        "a command of another type": HELLO + b'{"id": 1, "command": {"a": []}}\n',
        "arguments of another type": HELLO + b'{"id": 1, "command": "status", "arguments": 7}\n',
        "unknown arguments": HELLO + b'{"id": 1, "command": "status", "arguments": {"x": 1}}\n',
        **{
            f"a job whose number is {number}": HELLO
            + b'{"id": %s, "command": "summary", "arguments": {"recipe": {"model": {"name": "m"}, "data": '
            b'{"path": "/d"}}}}\n' % number.encode()
            for number in ("null", '"x"', "[]", "{}", "1e999", "-1", "1" * 400, "true", "0.5")
        },
        "a run that is a device": HELLO + b'{"id": 1, "command": "resume", "arguments": {"run": "/dev/zero"}}\n',
        "a run with a null character": HELLO + b'{"id": 1, "command": "resume", "arguments": {"run": "a\\u0000"}}\n',
        "a file that is a device": HELLO
        + b'{"id": 1, "command": "rows", "arguments": {"recipe": {"model": {"name": "m"}, "data": {"path": '
        b'"/dev/zero"}}, "start": -1, "stop": 1}}\n',
    }


def socket_path() -> Path:
    (path,) = (Path(os.environ["XDG_RUNTIME_DIR"]) / "tuitune").glob("*.sock")
    return path


async def send(data: bytes) -> None:
    """Send it and leave without a word; the session may hang up first."""
    reader, writer = await asyncio.open_unix_connection(socket_path())
    try:
        writer.write(data)
        await writer.drain()
        await asyncio.wait_for(reader.read(4096), 0.05)
    except (OSError, TimeoutError):
        pass
    finally:
        writer.transport.abort()


async def test_garbage_ends_its_own_connection_and_no_more(survived: Survived) -> None:
    session = await Session.start()
    pid = (await session.call(Status()))["pid"]
    expected = "the session answers its other clients at once, and logs no traceback of its own"
    records = []
    for name, data in garbage().items():
        await send(data)
        problems = []
        try:
            status = await asyncio.wait_for(session.call(Status()), 20)
            problems = [] if status["pid"] == pid else ["another session answers"]
        except Exception as error:
            problems = [repr(error)]
        records.append(Record("garbage on the socket", name, expected, problems))
    log = socket_path().with_suffix(".log").read_text()
    assert "Task exception was never retrieved" not in log and "Unhandled exception" not in log
    await session.close()
    await ended(pid)
    survived(records)


async def test_a_client_that_takes_nothing_is_dropped_before_it_fills_the_memory(tmp_path: Path) -> None:
    clients: list[Client] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        clients.append(Client(writer))
        writer.write(b"x")

    server = await asyncio.start_unix_server(serve, tmp_path / "socket")
    reader, writer = await asyncio.open_unix_connection(tmp_path / "socket", limit=1024)
    await reader.read(1)
    (client,) = clients
    for number in range(40):
        client.send({"id": number, "result": "x" * (MAX_LINE_BYTES // 2)})
        await asyncio.sleep(0)
        if client.writer.is_closing():
            break
    assert client.writer.is_closing() and 4 <= number < 12
    writer.transport.abort()
    server.close()


async def test_a_run_goes_on_while_clients_flood_it_come_and_go(
    tmp_path: Path, demo_recipe: Recipe, survived: Survived, thorough: bool
) -> None:
    """Attaching and detaching, a follower that never reads, requests without a pause, and two apps that both follow."""
    settings = {"max_steps": 5000, "eval_steps": 0}
    recipe = Recipe.from_data({**demo_recipe.model_dump(), "train": {**demo_recipe.train.model_dump(), **settings}})
    first = await Session.start()
    run, job = await start_run(first, recipe, tmp_path / "runs")
    await asyncio.gather(seen(first, Step))
    pid = (await first.call(Status()))["pid"]
    process = psutil.Process(pid)

    _, deaf = await asyncio.open_unix_connection(socket_path())
    deaf.write(HELLO + encode({"id": 1, "command": Follow.command}))
    records = []

    async def works() -> list[str]:
        before = run.history().step
        status = await asyncio.wait_for(first.call(Status()), 20)
        for _ in range(400):
            if run.history().step > before:
                return [] if status["job"] == "train" else [f"its job is {status['job']}"]
            await asyncio.sleep(0.05)
        return ["the run stands still"]

    handles = process.num_fds()
    for number in range(50 if thorough else 10):
        client = await Session.attach(run)
        following = asyncio.create_task(client.follow(lambda event: None))
        await asyncio.sleep(0.02 * (number % 3))
        await client.close()
        await asyncio.gather(following, return_exceptions=True)
        now = (await asyncio.wait_for(first.call(Status()), 20))["job"]
        wrong = [] if now == "train" else [f"its job is {now}"]
        records.append(Record("attached and detached", f"cycle {number + 1}", "the run goes on", wrong))
    problems = await works()
    await asyncio.sleep(0.5)
    if process.num_fds() > handles + 2:
        problems.append(f"{process.num_fds() - handles} connections are still open")
    records.append(
        Record("attached and detached", "afterwards", "the run goes on, and no connection is left", problems)
    )

    apps = [await Session.attach(run) for _ in range(2)]
    shown: list[list[Event]] = [[], []]
    for app, events in zip(apps, shown, strict=True):
        await app.follow(events.append)
    flood = await asyncio.gather(*(app.call(request) for app in apps for request in (Status(), Save(run.name)) * 200))
    records.append(
        Record("two apps flood at once", "400 requests each", "every one is answered", await works() if flood else [""])
    )
    assert (await apps[0].call(Stop(run.name)))["stopping"] == "after this step"
    assert (await apps[1].call(Stop(run.name)))["stopping"] in ("after this step", None)
    await asyncio.wait_for(job, 60)
    for _ in range(200):
        if all(events and isinstance(events[-1], Finished) for events in shown):
            break
        await asyncio.sleep(0.05)
    same = shown[0] == shown[1] == list(run.events())
    expected = "both have seen every event once and in order"
    records.append(Record("two apps stop at once", "one run", expected, [] if same else ["they have not"]))
    assert run.status() == "stopped" and run.adapter.is_dir()
    deaf.transport.abort()
    for session in (first, *apps):
        await session.close()
    await ended(pid)
    survived(records)


@pytest.mark.cold
@pytest.mark.parametrize("comes", [pytest.param("never", marks=pytest.mark.sweep), "once, and not again"])
async def test_a_session_whose_app_does_not_return_ends_by_itself(comes: str, tmp_path: Path) -> None:
    from tuitune.session.client import _spawn

    path = tmp_path / "runtime" / "tuitune" / "x.sock"
    path.parent.mkdir(mode=0o700)
    process = _spawn(path, path.with_suffix(".log"))
    for _ in range(400):
        if path.exists():
            break
        await asyncio.sleep(0.05)
    if comes != "never":
        await send(HELLO)
    assert await asyncio.to_thread(process.wait, 60) == 0
    assert list(path.parent.iterdir()) == []
