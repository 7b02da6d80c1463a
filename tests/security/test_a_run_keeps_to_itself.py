"""A whole run with a Hub token in its environment: nobody else can read it, reach it, or find the token."""

import asyncio
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.engine.sessions import ended, start_run
from tuitune.recipe import Recipe
from tuitune.runs.folder import Run
from tuitune.session.client import Session
from tuitune.session.result_requests import Chat, Export
from tuitune.session.run_requests import Status

TOKEN = "hf_CanaryTokenThatNobodyMayEverWriteDown"


@dataclass
class Seen:
    """What could be seen from outside while the run went on."""

    folder: Path
    run: Run = field(init=False)
    connections: set[str] = field(default_factory=set)
    arguments: set[str] = field(default_factory=set)
    looks: int = 0

    def look(self, session: psutil.Process) -> None:
        for process in (session, *session.children(recursive=True)):
            try:
                self.arguments |= set(process.cmdline())
                self.connections |= {str(connection) for connection in process.net_connections(kind="inet")}
            except psutil.NoSuchProcess:
                continue
        self.looks += 1


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    from tests.conftest import DEMO

    folder = tmp_path_factory.mktemp("alone")
    (folder / "runtime").mkdir(mode=0o700)
    changes = ["max_steps=3", "gradient_accumulation_steps=1", "eval_share=0.02", "samples.max_new_tokens=4"]
    with pytest.MonkeyPatch.context() as patched:
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY"):
            patched.setenv(name, TOKEN)
        patched.setenv("XDG_RUNTIME_DIR", str(folder / "runtime"))
        patched.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patched.setenv("HF_HOME", str(folder / "hf"))
        patched.setenv("TMPDIR", str(folder))
        mask = os.umask(0)  # where everybody may read and write what is not said to be private
        try:
            yield asyncio.run(whole_run(Seen(folder), Recipe.load(DEMO / "demo.yaml", changes)))
        finally:
            os.umask(mask)


async def whole_run(seen: Seen, recipe: Recipe) -> Seen:
    session = await Session.start()
    pid = (await session.call(Status()))["pid"]
    process = psutil.Process(pid)

    async def look_on() -> None:
        while True:
            seen.look(process)
            await asyncio.sleep(0.2)

    looking = asyncio.create_task(look_on())
    seen.run, job = await start_run(session, recipe, seen.folder / "runs")
    await job
    await session.call(
        Chat(str(seen.run.folder), [{"role": "user", "content": "Hello!"}], sampling={"max_new_tokens": 4})
    )
    await session.call(Export(str(seen.run.folder), ["adapter", "script"]))
    looking.cancel()
    await session.close()
    await ended(pid)
    return seen


def test_it_listens_on_no_network_and_speaks_to_none(seen: Seen) -> None:
    assert seen.looks > 10 and seen.connections == set()


def test_the_token_is_in_no_file_and_in_no_arguments(seen: Seen) -> None:
    files = [path for path in seen.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) > 30
    assert [str(path) for path in files if TOKEN.encode() in path.read_bytes()] == []
    assert seen.arguments and not [argument for argument in seen.arguments if TOKEN in argument]


def test_its_folder_is_the_users_alone(seen: Seen) -> None:
    assert seen.run.status() == "done" and any(seen.run.exports.iterdir())
    for folder in (seen.run.folder, seen.folder / "runs", seen.folder / "runtime" / "tuitune"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder
    record = [seen.run.events_file, seen.run.recipe_file, seen.run.resolved_file, seen.run.log_file]
    assert {stat.S_IMODE(file.stat().st_mode) for file in record} == {0o600}
