"""Several processes train what one would: the same losses, one record, one checkpoint; and one that dies ends them."""

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from tests.command import COMMAND
from tests.conftest import DEMO
from tests.engine.training import trained
from tuitune.errors import TuituneError, UnusableInput
from tuitune.machine.cards import STAND_INS, cards_of
from tuitune.paths import cache_folder
from tuitune.recipe import Recipe
from tuitune.recipe_sections import TrainSection
from tuitune.runs.events import Event, Failed, Finished, Phase, Started, Step
from tuitune.runs.folder import Run, RunWriter
from tuitune.session.client import Session
from tuitune.session.rank_messages import Start
from tuitune.session.rank_processes import RankProcess, _read_output, start_processes
from tuitune.session.run_requests import Resume, Save, Train
from tuitune.train.checkpoints import checkpoints_of, damage, step_of
from tuitune.train.control import Control
from tuitune.train.dealing import DealtBatches, deal_by_length, deal_by_tokens
from tuitune.train.ranks import SOCKETS, SharedControl, join
from tuitune.train.resume import resumption_of
from tuitune.train.run import train

STEPS = 10


def recipe_of(demo_recipe: Recipe, **train: Any) -> Recipe:
    """In fp32, of rows that no number of passes divides evenly, measured on the way."""
    settings = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 3,
        "save_steps": 100,
    }
    data = demo_recipe.model_dump(mode="json")
    data["model"]["load_in_4bit"] = False
    data["train"] |= settings | {"eval_steps": 3, "fit": False} | train
    data["samples"] = {"prompts": ["Who are you?"], "max_new_tokens": 4}
    return Recipe.from_data(data)


def go_on(run: Run, on_event: Callable[[Event, Control], None] = lambda event, control: None) -> None:
    """Go on with a run in this process alone."""
    writer, control = RunWriter(run), Control()

    def emit(event: Event) -> None:
        writer.append(event)
        on_event(event, control)

    resumed = resumption_of(run, emit)
    emit(Started(run=run.name, attempt=resumed.attempt, pid=os.getpid()))
    train(run.resolved(), run, control, emit, resumed=resumed)
    writer.close()


def pause_at(step: int) -> Callable[[Event, Control], None]:
    def pause(event: Event, control: Control) -> None:
        if isinstance(event, Step) and event.step == step:
            control.pause.set()
            control.stop.set()

    return pause


async def test_one_and_two_processes_train_the_same(
    demo_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run begins in one process and goes on in two, of which one is killed; then in two of which one hangs.

    The latter two share the frozen weights, too.
    SIGTERM ends that one in time. At last the run ends in one process, with the losses of a run that nothing disturbed.
    """
    recipe = recipe_of(demo_recipe)
    alone, expected = trained(recipe, tmp_path, "alone")
    together, _ = trained(recipe, tmp_path, "together", pause_at(3))
    assert together.status() == "paused"

    monkeypatch.setenv(STAND_INS, "2")
    monkeypatch.setenv("TUITUNE_GRACE", "0.5")
    session = await Session.start()
    assert session.pid is not None
    seen_at: dict[int, float] = {}
    listening: set[str] = set()
    saving: list[asyncio.Task[Any]] = []

    def hand(event: Event) -> None:
        if not isinstance(event, Step) or event.step in seen_at:
            return
        ranks = rank_processes()
        if event.step == 4 and event.card_seconds:
            seen_at[4] = event.at
            listening.update(addresses_listened_on(ranks))
            ranks[1].kill()
        elif event.step == 5:
            seen_at[5] = event.at
            saving.append(asyncio.ensure_future(session.call(Save(together.name))))
        elif event.step == 7:  # no checkpoint follows: the next step is under way and does not end
            seen_at[7] = event.at
            ranks[0].terminate()  # as a scheduler does that signals every process of a run: the session decides
            ranks[1].suspend()
            session.terminate()

    request = Resume(str(together.folder), ("train.gpus=all",))
    await session.follow(hand)
    with pytest.raises(TuituneError, match=r"process on the CPU \(2 of 2\) was killed by signal 9.*checkpoint-\d"):
        await session.call(request)
    ended = together.history().ended
    assert isinstance(ended, Failed)
    assert ended.at - seen_at[4] < 5
    assert not rank_processes()
    assert listening == {"127.0.0.1"}

    shared = Resume(str(together.folder), ("train.gpus=all", "train.shard=true"))
    assert (await session.call(shared))["status"] == "stopped"
    await session.close()
    told = [notice.text for notice in together.history().notices]
    assert any(text.startswith("2 cards share the frozen weights") for text in told)
    given_up = told[-1]
    assert "did not end within 0.5 s of the signal to end, and is given up: `tuitune resume` goes on from" in given_up
    monkeypatch.delenv(STAND_INS)
    saved = step_of(checkpoints_of(together)[-1])
    assert saved == 6, "saved when it was asked to"
    go_on(together)

    history = together.history()
    assert together.status() == "done"
    assert [step.loss for step in history.steps] == pytest.approx([step.loss for step in expected.steps], rel=1e-6)
    assert [step.tokens for step in history.steps] == [step.tokens for step in expected.steps]
    measured = {evaluation.step: evaluation.loss for evaluation in history.evaluations}
    assert {0, 6, 9, STEPS} <= measured.keys()
    alike = {evaluation.step: evaluation.loss for evaluation in expected.evaluations if evaluation.step in measured}
    assert measured == pytest.approx(alike, rel=1e-6)
    by_step = [len(step.card_seconds) for step in history.steps]
    assert by_step == [0] * 3 + [2] * (saved - 3) + [0] * (STEPS - saved), "steps after the last save are redone"
    assert_same_weights(together, alone)
    assert all(damage(checkpoint) is None for checkpoint in checkpoints_of(together))


def rank_processes() -> list[psutil.Process]:
    """The processes that train, in the order of their ranks."""
    return sorted(
        (child for child in psutil.Process().children(recursive=True) if "tuitune.session.rank" in child.cmdline()),
        key=lambda process: process.pid,
    )


def when_measured(run: Run) -> bool:
    """Whether the model is measured before training, for seconds."""
    return any(isinstance(event, Phase) and event.name == "before" for event in run.events())


def when_saved(run: Run) -> bool:
    """Whether the first process writes a checkpoint, for which the other one waits."""
    return any(run.checkpoints.glob("*/optimizer.pt")) or any(run.checkpoints.glob(".*/optimizer.pt"))


@pytest.mark.parametrize(("happens", "from_where"), [(when_measured, "the start"), (when_saved, "checkpoint-2")])
def test_a_process_that_hangs_outside_a_step_is_given_up_in_time_too(
    demo_recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    happens: Callable[[Run], bool],
    from_where: str,
) -> None:
    """The second process hangs in a measurement, or while the first one saves; then the command gets SIGTERM."""
    recipe = recipe_of(demo_recipe, save_steps=2, eval_steps=0)
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"eval_share": 0.5})})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    monkeypatch.setenv(STAND_INS, "2")
    monkeypatch.setenv("TUITUNE_GRACE", "1")
    run = Run(tmp_path / "run")
    words = ["run", str(tmp_path / "recipe.yaml"), "--name", run.name, "--runs", str(tmp_path), "--gpus", "all"]
    command = subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        while not (run.folder.is_dir() and happens(run)):
            assert command.poll() is None, command.communicate()[0]
            time.sleep(0.002)
        ranks = rank_processes()
        ranks[1].suspend()
        if from_where != "the start":  # it is whole before the signal comes
            wait_until(lambda: bool(run.history().checkpoints))
        command.terminate()
        told = command.communicate(timeout=60)[0]
    finally:
        command.kill()
    assert command.returncode == 75, told
    history = run.history()
    assert run.status() == "stopped" and isinstance(history.ended, Finished) and not run.adapter.exists()
    given_up = next(notice for notice in history.notices if "given up" in notice.text)
    assert given_up.text.endswith(
        f"within 1 s of the signal to end, and is given up: `tuitune resume` goes on from {from_where}."
    )
    assert history.ended.at - given_up.at < 5
    assert [step_of(checkpoint) for checkpoint in checkpoints_of(run)] == ([2] if history.steps else [])
    assert all(damage(checkpoint) is None for checkpoint in checkpoints_of(run))
    assert not any(process.is_running() for process in ranks)


def wait_until(holds: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.cold
def test_a_process_ends_with_its_session(demo_recipe: Recipe, tmp_path: Path) -> None:
    """It waits for another one, which never comes; of the last that it was told it got a half."""
    meeting, run = str(tmp_path / "meeting"), str(tmp_path / "run")
    start = Start(0, 2, False, meeting, run, demo_recipe.model_dump(mode="json"), None)
    (process,) = start_processes([start], [None], SOCKETS, SimpleQueue())
    assert process.process.stdin is not None
    process.tell(b'{"stop": tr')
    process.process.stdin.close()
    assert process.process.wait(timeout=20) == 1
    assert process.end is not None and process.end.how == "dead"


def test_a_process_whose_log_is_on_a_full_disk_does_not_wait_for_it() -> None:
    program = "import sys\nfor number in range(20_000): print('line', number, file=sys.stderr)"
    process = RankProcess(
        0, 1, "the CPU", subprocess.Popen([sys.executable, "-P", "-c", program], stderr=subprocess.PIPE)
    )
    log = open("/dev/full", "w")  # noqa: SIM115 - closing it fails, too
    _read_output(process, log)
    with suppress(OSError):
        log.close()
    assert process.process.wait(timeout=20) == 0 and process.last_lines[-1] == "line 19999"


async def trained_by_two(recipe: Recipe, runs: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Train in a session whose two processes share each step."""
    monkeypatch.setenv(STAND_INS, "2")
    session = await Session.start()
    reply = await session.call(Train(recipe.model_dump(mode="json"), str(runs), "together"))
    await session.close()
    assert reply["status"] == "done"
    return Run(runs / "together")


def assert_same_weights(run: Run, other: Run) -> None:
    weights = load_file(run.adapter / "adapter_model.safetensors")
    for name, weight in load_file(other.adapter / "adapter_model.safetensors").items():
        assert (weights[name] - weight).abs().max() < 1e-5


async def test_two_processes_learn_from_answers_of_their_own_as_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each generates half of the answers; a generation is trained on twice, and held-out prompts are answered."""
    changes = ["model.load_in_4bit=false", "train.max_steps=4", "train.gpus=all", "samples.prompts=[]"]
    changes += ["method.num_generations=4", "method.max_completion_length=12", "method.num_iterations=2"]
    changes += ["train.per_device_train_batch_size=4", "train.gradient_accumulation_steps=3", "data.eval_share=0.05"]
    recipe = Recipe.load(DEMO / "demo_grpo.yaml", changes=changes)
    alone, expected = trained(recipe, tmp_path, "alone")

    together = await trained_by_two(recipe, tmp_path, monkeypatch)
    told = together.history()
    assert [step.loss for step in told.steps] == pytest.approx([step.loss for step in expected.steps], abs=1e-5)
    assert [step.tokens for step in told.steps] == [step.tokens for step in expected.steps]
    for ours, theirs in zip(told.steps, expected.steps, strict=True):
        timed = {"step_seconds", "generating"}
        assert {name: value for name, value in ours.metrics.items() if name not in timed} == pytest.approx(
            {name: value for name, value in theirs.metrics.items() if name not in timed}, rel=1e-4, abs=1e-4
        )
    assert [e.loss for e in told.evaluations] == pytest.approx([e.loss for e in expected.evaluations], abs=1e-6)
    assert_same_weights(together, alone)


@pytest.mark.parametrize(
    ("method", "batch", "passes", "steps"), [("dpo", 3, 2, 6), ("orpo", 3, 2, 6), ("kto", 7, 1, 9)]
)
async def test_two_processes_weigh_replies_as_one_does(
    demo_recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    batch: int,
    passes: int,
    steps: int,
) -> None:
    """The last step of an epoch has a single row, so that one process has none then."""
    rows = (DEMO / "preferences.jsonl").read_text().splitlines()[:31]
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows) + "\n")
    settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": passes}
    data = recipe_of(demo_recipe, max_steps=steps, eval_steps=0, **settings).model_dump(mode="json")
    data["data"] |= {"path": str(tmp_path / "pairs.jsonl"), "eval_share": 0.2}
    recipe = Recipe.from_data({**data, "method": {"name": method}}, changes=["train.gpus=all"])
    alone, expected = trained(recipe, tmp_path, "alone")
    assert expected.plan is not None and expected.plan.rows % (batch * passes) == 1
    shutil.rmtree(cache_folder("reference"), ignore_errors=True)

    together = await trained_by_two(recipe, tmp_path, monkeypatch)
    told = together.history()
    assert [step.loss for step in told.steps] == pytest.approx([step.loss for step in expected.steps], rel=1e-5)
    assert [step.tokens for step in told.steps] == [step.tokens for step in expected.steps]
    assert [e.loss for e in told.evaluations] == pytest.approx([e.loss for e in expected.evaluations], rel=1e-5)
    figures, expected_figures = (
        [*(step.metrics for step in history.steps), *(evaluation.metrics for evaluation in history.evaluations)]
        for history in (told, expected)
    )
    for ours, theirs in zip(figures, expected_figures, strict=True):
        if "rewards/accuracies" in theirs and abs(theirs["rewards/margins"]) < 1e-4:  # rounding says who is ahead
            ours["rewards/accuracies"] = theirs["rewards/accuracies"] = 0.0
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4)
    assert_same_weights(together, alone)


def addresses_listened_on(processes: list[psutil.Process]) -> set[str]:
    connections = [connection for process in processes for connection in process.net_connections()]
    return {connection.laddr.ip for connection in connections if connection.status == psutil.CONN_LISTEN}


def test_what_one_process_is_asked_all_agree_on(
    demo_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads stand in for the processes."""
    for name, interface in SOCKETS.items():
        monkeypatch.setenv(name, interface)
    asked = Control(recipe=demo_recipe)
    asked.save.set()

    def work(rank: int) -> tuple[bool, bool, bool, bool, bool, Recipe | None, Any, tuple[float, ...]]:
        ranks = join(rank, 2, str(tmp_path / "meeting"), has_own_card=False)
        control = SharedControl(ranks=ranks, requests=asked if rank == 0 else Control())
        control.agree()
        first = control.save.is_set(), control.stop.is_set()
        if rank == 0:
            asked.pause.set()
            asked.stop.set()
        before = control.stop.is_set()
        control.agree()
        shared = ranks.share({"order": [2, 0, 1]} if rank == 0 else None)
        totals = ranks.totals(rank + 1, 0.5)
        return *first, before, control.stop.is_set(), control.pause.is_set(), control.recipe, shared, totals

    with ThreadPoolExecutor(2) as threads:
        zeroth, second = threads.map(work, range(2))
    assert zeroth == second == (True, False, False, True, True, demo_recipe, {"order": [2, 0, 1]}, (3.0, 1.0))
    assert not asked.save.is_set()


@pytest.mark.parametrize("deal", [deal_by_tokens, deal_by_length])
@pytest.mark.parametrize(("world", "batch", "accumulation", "rows"), [(2, 4, 2, 37), (3, 2, 1, 8), (4, 1, 2, 5)])
def test_every_row_of_a_step_is_dealt_once(deal: Any, world: int, batch: int, accumulation: int, rows: int) -> None:
    lengths = [(7 * row) % 50 + 1 for row in range(rows)]
    settings = TrainSection(per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)
    dealt = [
        list(DealtBatches(range(rows), lengths, settings, rank, world, padded=deal is deal_by_length))
        for rank in range(world)
    ]
    assert {len(passes) for passes in dealt} == {
        len(DealtBatches(range(rows), lengths, settings, 0, world, padded=False))
    }
    assert all(len(rows_of_pass) <= batch for passes in dealt for rows_of_pass in passes)
    assert sorted(row for passes in dealt for rows_of_pass in passes for row in rows_of_pass) == list(range(rows))


def test_token_sums_are_evened_out_over_processes() -> None:
    lengths = [(37 * row) % 400 + 20 for row in range(128)]
    settings = TrainSection(per_device_train_batch_size=64, gradient_accumulation_steps=2)
    sums = [
        sum(lengths[row] for row in next(iter(DealtBatches(range(128), lengths, settings, rank, 2, padded=False))))
        for rank in range(2)
    ]
    assert abs(sums[0] - sums[1]) <= 0.01 * sum(sums)


def test_cards_that_are_not_there_are_refused() -> None:
    with pytest.raises(UnusableInput, match="this machine has none"):
        cards_of("all")
