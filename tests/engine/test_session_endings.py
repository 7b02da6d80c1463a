"""A real session tells of a run's end and runs the command for it, with no terminal and no client left."""

import asyncio
import json
import socketserver
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest

from tests.engine.sessions import ended, start_run
from tests.engine.test_endings import Web
from tuitune.commands.run import set_then
from tuitune.errors import TuituneError, UnusableInput
from tuitune.recipe import Recipe
from tuitune.runs.cost import cost
from tuitune.runs.events import Finished, Notice, Price
from tuitune.runs.folder import Run
from tuitune.session.client import Session
from tuitune.session.run_requests import EndingStatus, SetPrice, SetThen, Status, Train
from tuitune.settings import Settings, settings_file

SECRET = "topic-nobody-knows"


async def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it has not come about"
        await asyncio.sleep(0.1)


async def counted(session: Session) -> EndingStatus:
    """The command for the end, as soon as it is counted down to."""
    for _ in range(1200):
        status = (await session.call(Status()))["ending"]
        if status is not None and status["seconds"] is not None:
            return status
        await asyncio.sleep(0.1)
    raise AssertionError("nothing is counted down to")


class Drip(socketserver.BaseRequestHandler):
    """A web server that answers byte by byte, each in time, without end."""

    def handle(self) -> None:
        with suppress(OSError):
            self.request.sendall(b"HTTP/1.1 200 OK\r\nName: ")
            while True:
                self.request.sendall(b"x")
                time.sleep(0.5)


async def test_a_server_that_answers_without_end_holds_no_session(
    demo_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Drip) as server:
        server.daemon_threads = True
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setenv("TUITUNE_WEBHOOK", f"http://127.0.0.1:{server.server_address[1]}/")
        session = await Session.start()
        pid = (await session.call(Status()))["pid"]
        run, job = await start_run(session, demo_recipe, tmp_path / "runs")
        await job
        await session.close()
        await until(lambda: any("was not told" in text for text in notices(run)))
        await ended(pid)
        server.shutdown()


def notices(run: Run) -> list[str]:
    return [event.text for event in run.events() if isinstance(event, Notice)]


async def test_it_follows_a_run_whose_client_has_gone(
    demo_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = Web()
    for name, value in {"no_proxy": "127.0.0.1", "TUITUNE_WEBHOOK": f"{web.address}/{SECRET}"}.items():
        monkeypatch.setenv(name, value)
    Settings(file=settings_file(), price="€3").save()
    session = await Session.start()
    pid = (await session.call(Status()))["pid"]
    folder: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    request = Train(demo_recipe.model_dump(mode="json"), str(tmp_path / "runs"), then=["touch", str(tmp_path / "ran")])
    job = asyncio.create_task(session.call(request, lambda part: folder.set_result(part["run"])))
    run = Run(Path(await folder))
    pending = (await session.call(Status()))["ending"]
    assert pending is not None and pending["state"] == "pending" and pending["command"].startswith("touch")
    await session.close()
    await asyncio.gather(job, return_exceptions=True)
    await until(lambda: run.history().ended is not None)
    finished = time.monotonic()
    await until((tmp_path / "ran").exists)
    assert time.monotonic() - finished > 8
    await until(lambda: not run.is_live())
    await ended(pid)
    ((_, path, _, body),) = web.requests
    web.close()
    assert path == f"/{SECRET}" and json.loads(body)["state"] == "done" and json.loads(body)["currency"] == "€"
    (price,) = [event for event in run.events() if isinstance(event, Price)]
    assert (price.per_hour, price.currency) == (3.0, "€")
    spent = cost(run.history())
    assert spent is not None and spent.so_far > 0
    assert isinstance(run.history().ended, Finished) and run.status() == "done"
    assert "has ended" in notices(run)[-1]
    for file in run.folder.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file


async def test_it_is_named_and_cancelled_while_the_run_goes_and_while_it_is_counted_down_to(
    demo_recipe: Recipe, tmp_path: Path
) -> None:
    session = await Session.start()
    run, job = await start_run(session, demo_recipe, tmp_path / "runs")
    await session.call(SetThen(run.name, ["touch", str(tmp_path / "ran")]))
    await session.call(SetPrice(run.name, "2 credits"))
    with pytest.raises(UnusableInput, match="There is no command"):
        await session.call(SetThen(run.name, ["no-such-command"]))
    with pytest.raises(UnusableInput, match="is not an amount"):
        await session.call(SetPrice(run.name, "much"))
    await job
    status = await counted(session)
    assert status["run"] == run.name and 0 < (status["seconds"] or 0) <= 10
    with pytest.raises(UnusableInput, match="it is not training any more"):
        await session.call(SetThen(run.name, ["true"]))
    assert await asyncio.to_thread(set_then, run, []) == 0  # as `tuitune then RUN --cancel`, from another process
    assert (await session.call(Status()))["ending"] is None
    with pytest.raises(TuituneError):
        await session.call(SetThen(run.name))
    assert "is not run: it was cancelled" in notices(run)[-1]
    assert str(cost(run.history())).endswith(" credits")

    request = Train(demo_recipe.model_dump(mode="json"), str(tmp_path / "runs"), then=["touch", str(tmp_path / "ran")])
    folders: list[str] = []
    await session.call(request, lambda part: folders.append(part["run"]))
    await counted(session)
    await session.call(Train(demo_recipe.model_dump(mode="json"), str(tmp_path / "runs")))
    assert "is not run: another run begins" in notices(Run(Path(folders[0])))[-1]
    await session.close()
    assert not (tmp_path / "ran").exists()
