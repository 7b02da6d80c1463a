"""The commands as programs use them: exit status, JSON alone on stdout, one sentence on stderr."""

import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.command import COMMAND
from tests.terminal.terminal import Terminal, write_recipe
from tuitune.recipe import Recipe
from tuitune.runs.events import Evaluation, Finished, Plan, Started, Step
from tuitune.runs.folder import create_run, find_run


def tuitune(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=300, check=False)


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def recipe_file(tmp_path: Path, demo_recipe: Recipe) -> str:
    return write_recipe(tmp_path, demo_recipe.to_yaml())


def test_the_first_paint_waits_for_no_large_library() -> None:
    large = {"torch", "transformers", "datasets", "numpy", "pydantic", "yaml", "pygments.lexers.data", "psutil"}
    code = f"import sys, screens.app, screens.home\nassert not {large} & set(sys.modules), {large} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["run", "--help"], ["export", "--help"]])
def test_version_and_help_import_nothing_heavy(arguments: list[str]) -> None:
    heavy = {"torch", "transformers", "datasets", "textual", "rich", "psutil"}
    if arguments == ["--version"]:
        heavy |= {"dataclasses", "hashlib", "platformdirs", "tempfile"}
    code = (
        "import sys\nfrom tuitune.commands.parser import run_command\n"
        f"try: run_command({arguments!r})\nexcept SystemExit as end: assert not end.code\n"
        f"assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "tuitune" in done.stdout


def test_a_run_is_one_event_a_line_then_chats_and_exports(tmp_path: Path, recipe_file: str) -> None:
    done = tuitune("run", recipe_file, "--name", "one", "--set", "max_steps=2", "--json")
    assert done.returncode == 0, done.stderr
    events = json_lines(done.stdout)
    assert [event["step"] for event in events if event["event"] == "step"] == [1, 2]
    assert events[-1]["event"] == "finished" and events[-1]["status"] == "done"

    repeated = tuitune("run", recipe_file, "--name", "one")
    assert repeated.returncode == 2 and "A run named one exists" in repeated.stderr

    reply = tuitune("chat", "one", "--prompt", "What is the capital of France?", "--base", "--json")
    (answer,) = json_lines(reply.stdout)
    assert answer["adapter"] is False and "Paris" in answer["reply"]
    piped = tuitune("chat", tmp_path / "runs" / "one", stdin="What is the capital of France?\n")
    assert piped.returncode == 0 and piped.stdout.strip()

    export = tuitune("export", "one", "--to", "adapter", "--to", "merged_16bit", "--json", "--out", tmp_path / "out")
    (exported,) = json_lines(export.stdout)
    assert [item["kind"] for item in exported["exports"]] == ["adapter", "merged_16bit"]
    assert all(Path(item["path"]).exists() for item in exported["exports"])
    assert exported["failed"] == [] and export.returncode == 0

    (tmp_path / "mine" / "script").mkdir(parents=True)
    for form in ([], ["--json"]):
        half = tuitune("export", "one", "--to", "script", "--to", "adapter", "--out", tmp_path / "mine", *form)
        assert half.returncode == 1 and half.stderr.startswith("tuitune: script: ")
        assert "is not an export of tuitune's" in half.stderr and str(tmp_path / "mine" / "adapter") in half.stdout
    (told,) = json_lines(half.stdout)
    assert [item["kind"] for item in told["exports"]] == ["adapter"]
    assert [item["kind"] for item in told["failed"]] == ["script"]
    assert all(item.keys() == {"kind", "error", "code"} for item in told["failed"])

    (listed,) = json_lines(tuitune("runs", "--json").stdout)
    assert (listed["run"], listed["status"], listed["step"]) == ("one", "done", 2)
    shown = tuitune("attach")
    assert shown.returncode == 0 and "Run one: done" in shown.stdout


@pytest.mark.cold
def test_inspect_prints_one_row_a_line(recipe_file: str) -> None:
    first, second = json_lines(tuitune("inspect", recipe_file, "--rows", "1:2", "--json").stdout)
    assert (first["row"], second["row"]) == (1, 2)
    assert first["total_tokens"] == len(first["tokens"]) > first["trained_tokens"] > 0
    assert first["trained_tokens"] == sum(token["trained"] for token in first["tokens"])
    trained = "".join(token["text"] for token in first["tokens"] if token["trained"])
    assert trained.endswith("<|im_end|>") and "<|im_start|>" not in trained
    beyond = tuitune("inspect", recipe_file, "--rows", "900:901")
    assert beyond.returncode == 2 and "There is no row 900" in beyond.stderr and "it has 400." in beyond.stderr


def test_inspect_needs_no_weights(tmp_path: Path, demo_recipe: Recipe) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in Path(demo_recipe.model.name).iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    model = demo_recipe.model.model_copy(update={"name": str(folder)})
    recipe = write_recipe(tmp_path, demo_recipe.model_copy(update={"model": model}).to_yaml())
    assert tuitune("inspect", recipe, "--rows", "1:1", "--json").returncode == 0
    assert tuitune("estimate", recipe, "--json").returncode == 0
    refused = tuitune("run", recipe)
    assert refused.returncode == 2 and "holds no .safetensors weights" in refused.stderr


OSC_52 = "\x1b]52;c;ZXZpbA==\x07"


def test_a_shared_run_folder_neither_reaches_the_terminal_nor_hides_other_runs(
    tmp_path: Path, demo_recipe: Recipe
) -> None:
    runs = tmp_path / "runs"
    writers = {name: create_run(demo_recipe, runs, name) for name in ("good", "evil", "broken")}
    writers["evil"].append(Started(run=f"run{OSC_52}\nfake", attempt=1, pid=1))
    writers["evil"].append(
        Plan(
            backend=f"x{OSC_52}", device=f"y{OSC_52}\nfake", rows=1, eval_rows=0, dropped_rows=0, tokens=1,
            trained_tokens=1, trainable_parameters=1, total_parameters=1, total_steps=1,
        )
    )  # fmt: skip
    for writer in writers.values():
        writer.close()
    (runs / "broken" / "events.jsonl").unlink()
    (runs / "broken" / "events.jsonl").mkdir()
    evil = runs / f"evil{OSC_52}\nfake"
    (runs / "evil").rename(evil)

    shown = [tuitune("runs"), tuitune("attach", evil), tuitune("attach", "broken"), tuitune("chat", evil)]
    for done in shown:
        output = done.stdout + done.stderr
        assert "\x1b" not in output and "\x07" not in output and "Traceback" not in output
        assert not any(line.startswith("fake") for line in output.splitlines())
        assert "this is a bug" not in output
    listed = {line.split()[0]: line for line in shown[0].stdout.splitlines()[1:]}
    assert len(listed) == 3 and "interrupted" in listed["good"]
    assert "unreadable" in listed["broken"] and "cannot be read" in listed["broken"]
    assert shown[2].returncode == 2 and "The record of run broken cannot be read" in shown[2].stderr
    as_json = {run["run"]: run["status"] for run in json_lines(tuitune("runs", "--json").stdout)}
    assert as_json == {"good": "interrupted", evil.name: "interrupted", "broken": "unreadable"}


def test_estimate_counts_what_training_will(recipe_file: str) -> None:
    (estimate,) = json_lines(tuitune("estimate", recipe_file, "--json").stdout)
    events = json_lines(tuitune("run", recipe_file, "--set", "max_steps=1", "--json").stdout)
    plan = next(event for event in events if event["event"] == "plan")
    for field in ("trainable_parameters", "rows", "tokens", "trained_tokens"):
        assert estimate[field] == plan[field], field
    assert estimate["trainable_share"] == plan["trainable_parameters"] / plan["total_parameters"]


def test_a_held_out_loss_that_is_not_a_number_hides_no_run(tmp_path: Path, demo_recipe: Recipe) -> None:
    create_run(demo_recipe, tmp_path / "runs", "other").close()
    writer = create_run(demo_recipe, tmp_path / "runs", "nan")
    for event in (
        Started(run="nan", attempt=1, pid=1),
        Evaluation(attempt=1, step=0, loss=math.nan),
        Step(attempt=1, step=1, total_steps=1, epoch=1.0, loss=2.0),
        Evaluation(attempt=1, step=1, loss=math.inf),
        Finished(status="done", step=1, seconds=1.0, adapter=None),
    ):
        writer.append(event)
    writer.close()
    listed = tuitune("runs")
    assert listed.returncode == 0 and "other" in listed.stdout and "nan → nan" in listed.stdout
    (told,) = (line for line in json_lines(tuitune("runs", "--json").stdout) if line["run"] == "nan")
    assert (told["status"], told["held_out_before"], told["held_out"]) == ("done", None, None)
    shown = tuitune("attach", "nan")
    assert shown.returncode == 0 and "held-out loss is not a number at step 1" in shown.stdout


@pytest.mark.parametrize("form", [["--json"], []])
@pytest.mark.fault
def test_a_run_whose_output_nobody_reads_any_more_goes_on_and_is_said_to(
    form: list[str], recipe_file: str, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [*COMMAND, "run", recipe_file, "--name", "unseen", *form],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    for line in process.stdout:
        if ("started" if form else "run unseen") in line:
            break
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait(timeout=60) == 1
    run = find_run("unseen", tmp_path / "runs")
    assert "goes on; come back to it with: " in said and str(run.folder) in said and len(said.splitlines()) == 1
    followed = tuitune("attach", "unseen")
    assert followed.returncode == 0 and "Run unseen: done" in followed.stdout and run.status() == "done"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("environment", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
@pytest.mark.fault
def test_output_on_a_full_disk_is_said_in_a_sentence(
    environment: dict[str, str], recipe_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    for arguments in (["runs"], ["inspect", recipe_file], ["run", recipe_file]):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [*COMMAND, *arguments],
                env=os.environ | environment,
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        assert done.returncode == 1
        assert done.stderr.startswith("tuitune: Standard output cannot be written (No space left on device).")
        assert len(done.stderr.splitlines()) == 1


def test_output_that_is_read_in_part_is_no_failure(recipe_file: str) -> None:
    command = shlex.join([*COMMAND, "inspect", recipe_file, "--rows", "1:300"])
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | head -1"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 1)


@pytest.mark.fault
def test_a_session_that_does_not_answer_is_said_and_can_be_left(recipe_file: str, tmp_path: Path) -> None:
    command = [*COMMAND, "run", recipe_file, "--name", "stuck", "--set", "max_steps=5000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    for line in process.stdout:
        if line.startswith("step"):
            break
    run = find_run("stuck", tmp_path / "runs")
    pid = json.loads(run.socket_file.read_text())["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:  # all of them count their 15 s at once
        follower, asked = (
            subprocess.Popen([*COMMAND, word, "stuck"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for word in ("attach", "stop")
        )
        app = Terminal("attach", "stuck")
        app.until("not answering, ")
        assert "The session has not answered for 15 s; Ctrl+C leaves it." in process.stderr.readline()
        os.kill(process.pid, signal.SIGINT)
        said = process.stderr.read()
        assert process.wait(timeout=20) == 130
        assert "Run stuck was asked to stop and has not ended yet" in said and f"`kill -9 {pid}`" in said

        assert follower.stderr is not None
        assert "The session has not answered for 15 s" in follower.stderr.readline()
        os.kill(follower.pid, signal.SIGINT)
        assert follower.wait(timeout=90) == 130
        follower.communicate()

        _, said = asked.communicate(timeout=90)
        assert asked.returncode == 1 and "told to stop by SIGTERM, which it gets once it runs again" in said

        app.press("s")
        app.press("\x11")
        assert app.exit_status() == 0
    finally:
        os.kill(pid, signal.SIGCONT)
    shown = tuitune("attach", "stuck")
    assert shown.returncode == 0 and "Run stuck: stopped when asked to" in shown.stdout


def test_a_run_that_is_left_to_itself_is_asked_for_a_checkpoint_stopped_and_gone_on_with(
    recipe_file: str, tmp_path: Path
) -> None:
    begun = tuitune("run", recipe_file, "--name", "far", "--set", "max_steps=5000", "--detach")
    assert begun.returncode == 0 and "Run far is training" in begun.stdout, begun.stderr
    run = find_run("far", tmp_path / "runs")
    end = time.monotonic() + 60
    while run.history().step < 2:
        assert run.is_live() and time.monotonic() < end
        time.sleep(0.1)
    assert tuitune("checkpoint", "far").stdout == "Run far saves a checkpoint after this step.\n"
    stopped = tuitune("stop", "far")
    assert stopped.stdout == "Run far stops after this step.\n"
    while run.is_live():
        assert time.monotonic() < end
        time.sleep(0.1)
    assert run.status() == "stopped" and run.adapter.is_dir() and len(run.history().checkpoints) >= 2
    nothing = tuitune("stop", "far")
    assert (
        nothing.returncode == 1
        and nothing.stderr == "tuitune: Run far has no live session: `tuitune runs` shows how it stands.\n"
    )
    at = run.history().step
    resumed = tuitune("resume", "far", "--detach")
    assert resumed.returncode == 0, resumed.stderr
    while run.history().step <= at:
        assert run.is_live() and time.monotonic() < end
        time.sleep(0.1)
    assert tuitune("stop", "far", "--now").stdout == "Run far stops at once.\n"
    shown = tuitune("attach", "far")
    assert "attempt 2" in shown.stdout and "Run far: stopped when asked to" in shown.stdout


@pytest.mark.fault
def test_ctrl_c_saves_and_ends_with_130(recipe_file: str, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "run", recipe_file, "--name", "c", "--set", "max_steps=5000", "--json"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["event"] == "step":
            break
    os.kill(process.pid, signal.SIGINT)
    rest = json_lines(process.stdout.read())
    assert process.wait(timeout=60) == 130
    assert rest[-1]["status"] == "stopped"
    assert (find_run("c", tmp_path / "runs").adapter / "adapter_model.safetensors").is_file()


@pytest.mark.fault
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_one_signal_to_the_command_and_its_session_saves_everything(
    number: signal.Signals, recipe_file: str, tmp_path: Path
) -> None:
    """As `systemctl stop` and Slurm do; the step is long, so that all of them come within it."""
    options = ["--name", "t", "--set", "max_steps=5000", "--json"]
    options += ["--set", "gradient_accumulation_steps=12", "--set", "per_device_train_batch_size=1"]
    process = subprocess.Popen([*COMMAND, "run", recipe_file, *options], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    session = None
    for line in process.stdout:
        event = json.loads(line)
        session = event.get("pid", session)
        if event["event"] == "step":
            break
    assert session is not None
    for pid in (process.pid, session, process.pid):
        os.kill(pid, number)
    process.stdout.read()
    assert process.wait(timeout=60) == 75
    run = find_run("t", tmp_path / "runs")
    assert run.status() == "stopped"
    assert (run.checkpoints / f"checkpoint-{run.history().step}" / "manifest.json").is_file()
    assert (run.adapter / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("rows", "changes", "says"),
    [
        (None, [], "There is no dataset file"),
        ("", [], "is empty"),
        ('{"messages": [{"role": "user", "content": "alone"}]}\n', [], "it has no assistant turn"),
        ('{"prompt": "a b c d e f g h i j k", "completion": "l"}\n', ["max_length=8"], "beyond max_length (8)"),
    ],
)
def test_data_that_cannot_be_trained_is_one_sentence(
    rows: str | None, changes: list[str], says: str, tmp_path: Path, demo_recipe: Recipe
) -> None:
    path = tmp_path / "rows.jsonl"
    if rows is not None:
        path.write_text(rows)
    data = demo_recipe.data.model_copy(update={"path": str(path)})
    recipe = write_recipe(tmp_path, demo_recipe.model_copy(update={"data": data}).to_yaml())
    done = tuitune("run", recipe, *(part for change in changes for part in ("--set", change)))
    assert done.returncode == 2
    assert says in done.stderr and len(done.stderr.splitlines()) == 1


def test_options_may_stand_before_the_command_and_of_several_live_runs_none_is_taken(
    tmp_path: Path, demo_recipe: Recipe
) -> None:
    runs = tmp_path / "elsewhere"
    writers = [create_run(demo_recipe, runs, name) for name in ("one", "two")]
    listed = tuitune("--runs", runs, "runs")
    assert listed.returncode == 0 and "one" in listed.stdout and "two" in listed.stdout
    refused = tuitune("attach", "--runs", runs)
    assert refused.returncode == 2 and refused.stdout == ""
    assert "2 runs are live" in refused.stderr and "tuitune attach RUN" in refused.stderr
    for writer in writers:
        writer.close()
    assert "Run one: " in tuitune("--ascii", f"--runs={runs}", "attach", "one").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["run", "none.yaml"],
        ["nonsense.yaml"],
        ["export", "x", "--to", "adapter"],
        ["inspect", "x", "--rows", "b:a"],
    ],
)
def test_unusable_arguments_end_with_2_and_a_sentence(arguments: list[str]) -> None:
    done = tuitune(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("tuitune: ") and "Traceback" not in done.stderr


def test_real_datasets_train_with_falling_loss(tmp_path: Path, demo_recipe: Recipe, shared_data: Path) -> None:
    for name, columns in (
        ("gsm8k_train.jsonl", {"user": "question", "assistant": "answer"}),
        ("vicuna_identity_sharegpt.json", None),
    ):
        data = {"path": str(shared_data / name), "columns": columns, "max_length": 256, "eval_share": 0.01}
        train = {"max_steps": 12, "learning_rate": 2e-3, "per_device_train_batch_size": 2, "warmup_steps": 1}
        train |= {"gradient_accumulation_steps": 1, "eval_steps": 0}
        samples = {"prompts": ["Who are you?"], "max_new_tokens": 4}
        raw = {**demo_recipe.model_dump(mode="json"), "data": data, "train": train, "samples": samples}
        recipe = write_recipe(tmp_path, Recipe.from_data(raw).to_yaml())
        done = tuitune("run", recipe, "--json")
        assert done.returncode == 0, done.stderr
        before, *_, after = (event["loss"] for event in json_lines(done.stdout) if event["event"] == "evaluation")
        assert after < before
