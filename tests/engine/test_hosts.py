"""Two hosts, as network namespaces joined by a cable, train what one would; a host that is unplugged is waited for."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from safetensors.torch import load_file

from tests.command import COMMAND
from tests.conftest import DEMO
from tests.engine.test_hardware import FakeNvml, nvml  # noqa: F401 - a fixture
from tests.engine.test_ranks import recipe_of
from tests.engine.training import trained
from tuitune.data.prepare import prepare
from tuitune.errors import TuituneError, UnusableInput
from tuitune.machine.hardware import gpus
from tuitune.model.config import load_tokenizer
from tuitune.recipe import Recipe
from tuitune.recipe_sections import SourceSection
from tuitune.runs.events import Sample
from tuitune.runs.folder import Run
from tuitune.session.hosts import HostTold, Joined, Meeting, RunTold, host_and_port, libraries, listen, parsed
from tuitune.session.joining import OwnPaths, own_place, samples_of
from tuitune.train.carry import on_every_host, with_initial_adapter
from tuitune.train.control import Control
from tuitune.train.ranks import SOCKETS, Ranks, join
from tuitune.train.run import _require_the_same_everywhere

FIRST, SECOND = "10.77.0.1", "10.77.0.2"
RENDEZVOUS = f"{FIRST}:29511"


@dataclass
class Cabled:
    """Two hosts; commands run on either."""

    names: tuple[str, str]

    def start(self, host: int, *arguments: object) -> subprocess.Popen[str]:
        command = ["ip", "netns", "exec", self.names[host], *COMMAND, *map(str, arguments)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def plug(self, state: str) -> None:
        _ip("-n", self.names[1], "link", "set", "cable", state)

    def addresses_listened_on(self) -> set[str]:
        listening = [_ip("netns", "exec", name, "ss", "-Hltn").splitlines() for name in self.names]
        return {line.split()[3].rpartition(":")[0] for lines in listening for line in lines}


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def cabled() -> Iterator[Cabled]:
    names = (f"tuitune-a{os.getpid()}", f"tuitune-b{os.getpid()}")
    try:
        for name in names:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", names[0], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", names[1])
        for name, address in zip(names, (FIRST, SECOND), strict=True):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            _ip("-n", name, "link", "set", "cable", "up")
        yield Cabled(names)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', '') or error}")
    finally:
        for name in names:
            left = subprocess.run(["ip", "netns", "pids", name], check=False, capture_output=True, text=True)
            for pid in left.stdout.split():
                os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def wait_for(happened: Callable[[], bool], processes: list[subprocess.Popen[str]], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        ended = [process.communicate()[0] for process in processes if process.poll() is not None]
        assert not ended, ended
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_two_hosts_train_what_one_does_and_wait_for_the_one_that_is_unplugged(
    demo_recipe: Recipe, tmp_path: Path, cabled: Cabled
) -> None:
    recipe = recipe_of(demo_recipe, max_steps=12, save_steps=3, eval_steps=4)
    alone, expected = trained(recipe, tmp_path, "alone")
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    run = Run(tmp_path / "together")
    second = cabled.start(1, "join", RENDEZVOUS)
    options = ("--name", run.name, "--runs", tmp_path, "--nnodes", 2, "--rdzv", RENDEZVOUS)
    first = cabled.start(0, "run", tmp_path / "recipe.yaml", *options)
    try:
        wait_for(lambda: run.folder.is_dir() and run.history().step >= 1, [first, second])
        assert cabled.addresses_listened_on() == {FIRST, SECOND}
        wait_for(lambda: run.history().step >= 4, [first, second])
        cabled.plug("down")
        wait_for(lambda: any(SECOND in notice.text for notice in run.history().notices[2:]), [first, second], 20)
        cabled.plug("up")
        told, second_told = first.communicate(timeout=120)[0], second.communicate(timeout=20)[0]
    finally:
        for process in (first, second):
            process.kill()
    assert (first.returncode, second.returncode) == (0, 0), told + second_told
    lost = f"Host {SECOND} has left or does not answer: the run waits for it, and goes on from checkpoint-(3|6|9)"
    assert re.search(lost, told), told
    assert "must be a private one" in told
    assert "The run is over: together is done." in second_told

    history = run.history()
    assert [step.loss for step in history.steps] == pytest.approx([step.loss for step in expected.steps], rel=1e-6)
    assert [step.tokens for step in history.steps] == [step.tokens for step in expected.steps]
    assert {len(step.card_seconds) for step in history.steps} == {2}
    measured = {evaluation.step: evaluation.loss for evaluation in history.evaluations}
    assert measured[12] == pytest.approx(expected.evaluations[-1].loss, rel=1e-6)
    weights = load_file(alone.adapter / "adapter_model.safetensors")
    for name, weight in load_file(run.adapter / "adapter_model.safetensors").items():
        assert (weights[name] - weight).abs().max() < 1e-5


@pytest.mark.cold
def test_a_host_trains_with_equal_content_at_other_paths(demo_recipe: Recipe, demo_model: Path, tmp_path: Path) -> None:
    """Two hosts on the loopback interface; the second one has model and data elsewhere."""
    recipe = recipe_of(demo_recipe, max_steps=3, eval_steps=0)
    lines = Path(recipe.data.path).read_text().splitlines(keepends=True)
    there = tmp_path / "there"
    for folder in (tmp_path / "here", there):
        folder.mkdir()
        (folder / "a.jsonl").write_text("".join(lines[:150]))
        (folder / "b.jsonl").write_text("".join(lines[150:200]))
        (folder / "held out.jsonl").write_text("".join(lines[200:220]))
    files = [tmp_path / "here" / name for name in ("a.jsonl", "b.jsonl", "held out.jsonl")]
    data = {"path": str(files[0]), "also": [SourceSection(path=str(files[1]))], "eval_path": str(files[2])}
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update=data | {"eval_share": 0.0})})
    _alone, expected = trained(recipe, tmp_path, "alone")
    shutil.copytree(demo_model, there / "model")
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    address = f"127.0.0.1:{listen_anywhere()}"
    run = Run(tmp_path / "together")
    own = [word for file in files for word in ("--data", there / file.name)]

    def start(*arguments: object) -> subprocess.Popen[str]:
        command = [*COMMAND, *map(str, arguments)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    options = ("--name", run.name, "--runs", tmp_path, "--nnodes", 2, "--rdzv", address)
    first = start("run", tmp_path / "recipe.yaml", *options)
    too_few = start("join", address, *own[:2])
    second = None
    try:
        refusal = too_few.communicate(timeout=120)[0]
        assert too_few.returncode == 2
        assert f"reads 3 data files ({', '.join(map(str, files))}): give --data for each of them" in refusal
        second = start("join", address, "--model", there / "model", *own)
        told, second_told = first.communicate(timeout=120)[0], second.communicate(timeout=20)[0]
    finally:
        for process in filter(None, (first, too_few, second)):
            process.kill()
    assert (first.returncode, second.returncode) == (0, 0), told + second_told
    history = run.history()
    assert {"127.0.0.1 (1)"} == history.other_hosts.keys(), "the first host's record tells of the second one's machine"
    losses = [step.loss for step in history.steps]
    assert losses == pytest.approx([step.loss for step in expected.steps], rel=1e-6)


def test_what_a_host_gets_from_the_hub_has_no_path_of_its_own(demo_recipe: Recipe) -> None:
    data = demo_recipe.data.model_copy(update={"path": "hub:some/chats", "eval_path": "/there/held_out.jsonl"})
    recipe = demo_recipe.model_copy(update={"data": data})
    placed = OwnPaths(data=("/here/held_out.jsonl",)).put_into(recipe)
    assert (placed.data.path, placed.data.eval_path) == ("hub:some/chats", "/here/held_out.jsonl")
    of_the_hub = recipe.model_copy(update={"model": recipe.model.model_copy(update={"name": "some/model"})})
    with pytest.raises(UnusableInput, match="some/model is one of the Hub"):
        OwnPaths(model="/here/model").put_into(of_the_hub)


def test_other_data_on_a_host_is_named(demo_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads stand in for the hosts."""
    for name, interface in SOCKETS.items():
        monkeypatch.setenv(name, interface)
    data = Path(demo_recipe.data.path)
    copy = tmp_path / data.name
    copy.write_bytes(data.read_bytes() + data.read_bytes().splitlines(keepends=True)[0])
    port = listen_anywhere()
    meeting = Meeting(f"127.0.0.1:{port}", 2)

    def train(rank: int) -> str:
        recipe = demo_recipe
        if rank == 1:
            recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"path": str(copy)})})
        prepared = prepare(recipe, load_tokenizer(recipe.model))
        ranks = join(rank, 2, f"{meeting.address}/0", has_own_card=False, places=(FIRST, SECOND))
        with pytest.raises(UnusableInput) as refusal:
            _require_the_same_everywhere(recipe, prepared, ranks)
        return str(refusal.value)

    with ThreadPoolExecutor(2) as threads:
        refusals = list(threads.map(train, range(2)))
    meeting.close("")
    for refusal, path in zip(refusals, (data, copy), strict=True):
        assert refusal == (
            f"The data in {path} is not the same on host {SECOND} as on the first one: copy it from there."
        )


def listen_anywhere() -> int:
    """A port that nothing listens on."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_a_host_with_other_libraries_or_without_a_card_is_refused() -> None:
    meeting = Meeting(f"127.0.0.1:{listen_anywhere()}", 3)
    own = HostTold(processes=1, libraries=libraries())
    unlike = [HostTold(processes=1, libraries="tuitune 0"), HostTold(2, "", 2, have_cards=True, libraries=libraries())]
    hosts = [Joined(meeting.address, told) for told in [*unlike, own]]
    control = Control()
    with ThreadPoolExecutor(1) as thread:
        gathered = thread.submit(meeting.gather, 1, False, control)
        deadline = time.monotonic() + 10
        refused: dict[str, str] = {}
        while len(refused) < 2 and time.monotonic() < deadline:
            told = hosts[0].run()
            refused = told.refused if told else {}
            time.sleep(0.05)
        control.stop.set()
        assert not gathered.result(), "one more is missing"
    assert refused.keys() == {"host-1", "host-2"}
    assert "this host has tuitune 0, and the first one has tuitune" in refused["host-1"]
    assert "a GPU of its own" in refused["host-2"]
    for host in hosts:
        host.leave()
    meeting.close("")


def test_the_first_host_hears_of_the_cards_of_another_one(nvml: FakeNvml) -> None:  # noqa: F811
    meeting = Meeting(f"127.0.0.1:{listen_anywhere()}", 2)
    joined = Joined(meeting.address, HostTold(processes=1, libraries=libraries()))
    assert meeting.gather(1, have_cards=False, control=Control())
    card = gpus()[1]
    joined.tell(samples=samples_of([os.getpid()], [card]))
    heard: list[Sample] = []

    def hear() -> bool:
        heard.extend(meeting.samples())
        return bool(heard)

    wait_for(hear, [], 10)
    (sample,) = heard
    assert (sample.host, sample.gpu_index) == (meeting.members[0].place, 1)
    assert (sample.gpu_total_bytes, sample.gpu_percent, sample.gpu_celsius) == (card.total_bytes, 87.0, 61.0)
    assert not meeting.samples(), "each is heard once"
    joined.tell(samples=samples_of([os.getpid()] * 9, [card] * 9))
    heard.clear()
    wait_for(hear, [], 10)
    assert len(heard) == 1, "no more than it has processes"
    joined.tell(round=meeting.round, end={"how": "of nothing that we know"}, samples=samples_of([os.getpid()], [card]))
    heard.clear()
    wait_for(hear, [], 10)
    assert meeting.ends() == []
    joined.leave()
    meeting.close("")


def test_a_host_whose_output_is_lost_trains_on() -> None:
    meeting = Meeting(f"127.0.0.1:{listen_anywhere()}", 2)
    command = [*COMMAND, "join", meeting.address]
    with open("/dev/full", "w") as full, subprocess.Popen(command, stdout=full, stderr=subprocess.PIPE) as host:
        try:
            assert meeting.gather(1, have_cards=False, control=Control())
            meeting.close("all is done")
            assert host.wait(timeout=60) == 0
        finally:
            host.kill()


def test_what_killed_hosts_had_brought_to_them_is_removed_and_nothing_of_those_that_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "joined"
    for pid in ("1", "2"):
        (folder / pid / "run" / "checkpoints").mkdir(parents=True)
        (folder / pid / "log").touch()
    with own_place(folder / "1", folder):
        with own_place(folder / "3", folder):
            assert (folder / "1" / "run").exists()
        assert not (folder / "2" / "run").exists() and (folder / "2" / "log").exists()


def test_what_no_host_of_ours_tells_is_passed_over() -> None:
    assert parsed(RunTold, b'{"beat": 1}') is None
    assert parsed(HostTold, b"\x80\x04\x95") is None


@pytest.mark.parametrize("address", ["10.0.0.1", "0.0.0.0:29500", ":29500", "host:port", "host:70000"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UnusableInput, match="is not HOST:PORT"):
        host_and_port(address)


def test_an_address_of_another_host_is_refused() -> None:
    with pytest.raises(UnusableInput, match=r"cannot listen on 192\.0\.2\.1:29500"):
        listen("192.0.2.1:29500")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("checkpoint-2", "../../../evil"),
        ("checkpoint-2", "/tmp/evil"),
        ("../evil", "adapter.bin"),
        ("..", "adapter.bin"),
    ],
)
def test_nothing_of_the_first_hosts_is_written_outside_the_run(tmp_path: Path, name: str, file: str) -> None:
    told = iter([name, {file: 3}])
    wire = SimpleNamespace(span_hosts=True, is_first=False, writes_here=True, share=lambda _own: next(told))
    with pytest.raises(TuituneError, match="outside the run's folder"):
        on_every_host(None, Run(tmp_path / "run"), cast(Ranks, wire))
    assert not (tmp_path / "run").exists() and not list(tmp_path.rglob("*evil*"))


def test_an_adapter_to_begin_with_comes_from_the_first_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads stand in for processes on two hosts, of which one has the adapter."""
    for name, interface in SOCKETS.items():
        monkeypatch.setenv(name, interface)
    adapter = tmp_path / "first" / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 100)
    (adapter / "adapter_config.json").write_text("{}")
    recipe = Recipe.load(DEMO / "demo.yaml", changes=[f"lora.init_adapter={adapter}"])

    def begin(rank: int) -> Recipe:
        ranks = join(rank, 2, str(tmp_path / "meeting"), has_own_card=False)
        there = Ranks(rank, 2, ranks._gloo, None, ("first", "second"))
        return with_initial_adapter(recipe, Run(tmp_path / f"run-{rank}"), there)

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(begin, range(2))
    assert first == recipe and not (tmp_path / "run-0").exists()
    carried = tmp_path / "run-1" / "initial_adapter"
    assert second.lora.init_adapter == str(carried)
    for file in adapter.iterdir():
        assert (carried / file.name).read_bytes() == file.read_bytes()
