"""Datasets and models of the Hugging Face Hub, from a Hub of folders on this machine, over real HTTP."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import DEMO
from tests.engine.hub_server import Hub, commit, hub_server
from tests.forking import VARIABLE, Forker, run_forked
from tuitune.export.card import model_card
from tuitune.runs.folder import Run

DATASET = "sea/shanties"
TOKEN = "hf_" + "notASecret" * 4


@pytest.fixture(scope="module")
def empty_hub() -> Iterator[Hub]:
    with hub_server() as server:
        yield server


@pytest.fixture
def hub(empty_hub: Hub, tmp_path: Path) -> Iterator[Hub]:
    """A dataset of two configurations, splits and revisions, and the demo model; both once more behind a gate."""
    import pyarrow
    import pyarrow.parquet

    main, second = tmp_path / "main", tmp_path / "v2"
    card = "---\nconfigs:\n{}---\nSongs.\n"
    config = "- config_name: {}\n  data_files:\n  - split: train\n    path: {}\n  - split: test\n    path: {}\n"
    for folder, words in ((main, "first"), (second, "second")):
        (folder / "lines").mkdir(parents=True)
        (folder / "table").mkdir()
        (folder / "README.md").write_text(
            card.format(
                config.format("lines", "lines/train-*.jsonl", "lines/test.jsonl")
                + config.format("table", "table/train.parquet", "table/test.parquet")
            )
        )
        rows = [{"question": f"What is {n}?", "answer": f"The {words} {n}."} for n in range(30)]
        write(folder / "lines" / "train-0.jsonl", rows[:12])
        write(folder / "lines" / "train-1.jsonl", rows[12:20], "{broken")
        write(folder / "lines" / "test.jsonl", [*rows[20:26], rows[0]])
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[:20]), folder / "table" / "train.parquet")
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[20:]), folder / "table" / "test.parquet")
    before = vars(empty_hub).copy()
    empty_hub.repositories = {
        f"datasets/{DATASET}": {"main": main, "v2": second},
        "datasets/sea/secret": {"main": main},
        "models/sea/secret": {"main": DEMO / "demo_model"},
    }
    empty_hub.gated = {"datasets/sea/secret", "models/sea/secret"}
    empty_hub.asked = []
    yield empty_hub
    vars(empty_hub).update(before)


def write(path: Path, rows: list[dict[str, Any]], *lines: str) -> None:
    path.write_text("\n".join([*map(json.dumps, rows), *lines]) + "\n")


Command = tuple[str, dict[str, Any]]
Tuitune = Callable[..., list["Done"]]


@dataclass(frozen=True)
class Done:
    """What a command said."""

    status: int
    out: str
    err: str

    def answer(self) -> Any:
        assert self.status == 0, self.err
        (line,) = self.out.splitlines()
        return json.loads(line)

    def refusal(self) -> str:
        assert self.status == 2 and not self.out, self
        sentence = self.err.splitlines()[-1]
        assert sentence.startswith("tuitune: ") and sentence.endswith(".") and "Traceback" not in self.err
        return sentence


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the libraries keep what they have downloaded: settled as they are imported."""
    return tmp_path_factory.mktemp("hf")


@pytest.fixture(scope="module")
def forkers(cache: Path) -> Iterator[Callable[[Hub], Forker]]:
    """What forks commands and sessions that take this address for the Hub's: it, too, is settled at the import."""
    forkers: dict[str, Forker] = {}

    def knowing(hub: Hub) -> Forker:
        if hub.endpoint not in forkers:
            forkers[hub.endpoint] = Forker(without_hub() | hub.environment(cache))
        return forkers[hub.endpoint]

    yield knowing
    for forker in forkers.values():
        forker.close()


def without_hub() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("HF_")}


@pytest.fixture
def tuitune(tmp_path: Path, hub: Hub, cache: Path, forkers: Callable[[Hub], Forker]) -> Iterator[Tuitune]:
    """Command lines, one after another, that know this Hub; `FILE` is a recipe with the given fields."""

    def run(*commands: Command, token: str = "") -> list[Done]:
        forker = {VARIABLE: str(forkers(hub).path)}
        environment = without_hub() | hub.environment(cache) | {"XDG_CACHE_HOME": str(tmp_path / "cache")} | forker
        environment |= {"HF_TOKEN": token} if token else {}
        done = []
        for number, (line, fields) in enumerate(commands):
            recipe = tmp_path / f"recipe{number}.json"
            model = {"name": fields.pop("model", str(DEMO / "demo_model"))}
            data = {"path": f"hub:{DATASET}", "config": "lines", **fields}
            recipe.write_text(json.dumps({"model": model, "data": data}))
            words = [str(recipe) if word == "FILE" else word for word in line.split()]
            ended = run_forked([sys.executable, "-P", "-m", "tuitune", *words], cwd=tmp_path, env=environment)
            done.append(Done(ended.returncode, ended.stdout, ended.stderr))
        return done

    yield run
    for kept in cache.iterdir():
        shutil.rmtree(kept) if kept.is_dir() else kept.unlink()


def test_a_split_of_a_configuration_is_read_and_audited(tuitune: Tuitune, hub: Hub) -> None:
    """From several files, and only those; a row of another commit says so."""
    summary, audited, shown, mixed, part, last = tuitune(
        ("inspect FILE --json", {}),
        ("audit FILE --json", {"eval_split": "test"}),
        ("inspect FILE --json --rows 4:4", {"config": "table", "revision": "v2"}),
        ("audit FILE --json", {"also": [{"path": f"hub:{DATASET}", "config": "table", "split": "test", "weight": 2}]}),
        ("inspect FILE --json", {"split": "train[8:15]"}),
        ("inspect FILE --json --rows 1:1", {"config": "table", "split": "train[-1:]"}),
    )
    data = summary.answer()
    assert (data["kind"], data["format"], data["rows"]) == ("Hugging Face Hub", "columns", 21)
    report = audited.answer()
    assert (report["rows"], report["used"]) == (21, 20)
    (dropped,) = report["dropped"].values()
    assert dropped["examples"] == [[0, 21]] and dropped["first"].startswith("lines/train-1.jsonl: line 9")
    row = shown.answer()
    assert "The second 3." in "".join(token["text"] for token in row["tokens"] if token["trained"])
    assert [source["rows"] for source in mixed.answer()["sources"]] == [21, 10]
    assert (part.answer()["kind"], part.answer()["rows"]) == ("Hugging Face Hub, rows 9 to 15", 7)
    assert "What is 19?" in "".join(token["text"] for token in last.answer()["tokens"])
    first = commit(f"datasets/{DATASET}", "main")
    downloaded = {path for path in hub.asked if "/lines/" in path}
    assert downloaded == {
        f"datasets/{DATASET}/resolve/{first}/lines/{name}.jsonl" for name in ("train-0", "train-1", "test")
    }


def test_what_is_not_there_or_may_not_be_read_is_refused_in_one_sentence(tuitune: Tuitune) -> None:
    rows = "inspect FILE --rows 1:1"
    expected: list[tuple[str, Command]] = [
        (
            "Set data.config to one of the configurations of sea/shanties: lines, table.",
            ("inspect FILE", {"config": None}),
        ),
        (
            "Set data.config to one of the configurations of sea/shanties: lines, table.",
            ("inspect FILE", {"config": "x"}),
        ),
        ("has no split dev: set data.split to one of train, test.", ("inspect FILE", {"split": "dev"})),
        ("has no revision v9: give a branch", ("inspect FILE", {"revision": "v9"})),
        ("sea/secret is gated: accept its licence", ("inspect FILE", {"path": "hub:sea/secret"})),
        ("has no dataset sea/nothing that you may read", ("inspect FILE", {"path": "hub:sea/nothing"})),
        ("'../x' is no Hub dataset id", ("inspect FILE", {"path": "hub:../x"})),
        ("sea/secret is gated: accept its licence", (rows, {"model": "sea/secret"})),
        ("has no model sea/nothing that you may read", (rows, {"model": "sea/nothing"})),
    ]
    done = tuitune(*(command for _, command in expected))
    for (sentence, _), ended in zip(expected, done, strict=True):
        assert sentence in ended.refusal()


SEARCHES = """
import json, sys
from tuitune.hub.datasets import dataset_splits, search_datasets
from tuitune.errors import TuituneError
for asked in json.loads(sys.argv[1]):
    try:
        found = [each.name for each in search_datasets(asked[0])] if len(asked) == 1 else dataset_splits(*asked)
    except TuituneError as error:
        found = str(error)
    print(json.dumps(found), flush=True)
"""


def test_datasets_are_searched_and_their_splits_listed(hub: Hub, tmp_path: Path) -> None:
    def ask(*asked: list[str], offline: str = "0", token: str = "") -> list[Any]:
        environment = without_hub() | hub.environment(tmp_path / "hf") | {"HF_HUB_OFFLINE": offline, "HF_TOKEN": token}
        whole = [sys.executable, "-c", SEARCHES, json.dumps(asked)]
        done = subprocess.run(whole, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
        return [json.loads(line) for line in done.stdout.splitlines()]

    hub.repositories["datasets/sea/closed"] = hub.repositories[f"datasets/{DATASET}"]
    hub.forbidden = {"datasets/sea/closed"}
    names, nothing, splits, older, gated, absent, revision, odd = ask(
        *(["shanties"], ["xyzzy"], [DATASET, ""], [DATASET, "v2"]),
        *(["sea/secret", ""], ["sea/nothing", ""], [DATASET, "v9"], ["../x", ""]),
    )
    assert (names, nothing) == ([DATASET], [])
    assert splits == older == {"lines": ["train", "test"], "table": ["train", "test"]}
    assert gated.startswith("sea/secret is gated: accept its licence")
    assert "has no dataset sea/nothing that you may read" in absent
    assert f"{DATASET} has no revision v9" in revision
    assert "is no Hub dataset id" in odd
    (forbidden,) = ask(["sea/closed", ""], token=TOKEN)
    assert forbidden.startswith("The Hub forbids reading sea/closed: run `hf auth login`")
    hub.forbidden = {"datasets"}
    assert ask(["x"]) == [
        "The Hugging Face Hub refuses to search (error 403): run `hf auth login` again, or give a dataset file instead."
    ]
    assert ask(["x"], offline="1") == [
        "HF_HUB_OFFLINE is set, so the Hugging Face Hub is not asked: unset it, or give a dataset file instead."
    ]
    hub.endpoint = "http://127.0.0.1:9"
    (unreached,) = ask(["x"])
    assert "(http://127.0.0.1:9) cannot be reached: check the connection" in unreached


def test_a_model_loads_by_its_hub_id_and_without_a_connection_from_its_copy(
    tuitune: Tuitune, hub: Hub, tmp_path: Path
) -> None:
    """Config, tokenizer and weights, behind a gate that a token opens: a run trains on them and keeps no token."""
    run, shown = tuitune(
        ("run FILE --name one --set max_steps=1 --set max_new_tokens=4", {"model": "sea/secret"}),
        ("inspect FILE --json --rows 1:1", {"model": "sea/secret"}),
        token=TOKEN,
    )
    assert run.status == 0, run.err
    kept = [file for file in (tmp_path / "runs" / "one").rglob("*") if file.is_file()]
    assert kept and not any(TOKEN.encode() in file.read_bytes() for file in kept)
    assert any(path.startswith("sea/secret/") and path.endswith("/model.safetensors") for path in hub.asked)
    hub.endpoint, began = "http://127.0.0.1:9", time.monotonic()
    offline, model, dataset = tuitune(
        ("inspect FILE --json --rows 1:1", {"model": "sea/secret"}),
        ("inspect FILE --rows 1:1", {"model": "sea/other"}),
        ("inspect FILE", {"path": "hub:sea/other"}),
    )
    assert offline.answer() == shown.answer()
    for refused in (model, dataset):
        assert "the Hugging Face Hub (http://127.0.0.1:9) cannot be reached: check the connection" in refused.refusal()
    assert time.monotonic() - began < 45  # the libraries alone would try for two minutes


def test_a_run_records_the_commits_and_repeats_them_when_the_hub_has_moved_on(
    tuitune: Tuitune, hub: Hub, tmp_path: Path
) -> None:
    """Of the model, the datasets and the evaluation's; and asks each repository once whether it may be read."""
    main, second = hub.repositories[f"datasets/{DATASET}"].values()
    hub.repositories["models/sea/demo"] = {"main": DEMO / "demo_model"}
    hub.repositories["datasets/sea/measured"] = {"main": second}
    fields = {
        "model": "sea/demo",
        "also": [{"path": f"hub:{DATASET}", "config": "table"}],
        "eval_path": "hub:sea/measured",
        "eval_split": "test",
    }
    steps = "--set max_steps=1 --set max_new_tokens=4"
    (first,) = tuitune((f"run FILE --name one {steps}", fields))
    assert first.status == 0, first.err
    for repository in ("models/sea/demo", f"datasets/{DATASET}", "datasets/sea/measured"):
        assert hub.asked.count(f"api/{repository}/auth-check") == 1
    asked, trained = (
        yaml.safe_load((tmp_path / "runs" / "one" / name).read_text()) for name in ("recipe.yaml", "resolved.yaml")
    )
    assert not asked["model"].get("revision") and not asked["data"].get("revision")
    shanties = commit(f"datasets/{DATASET}", main.name)
    assert trained["model"]["revision"] == commit("models/sea/demo", "demo_model")
    card = model_card(Run(tmp_path / "runs" / "one"), "adapter")
    assert f"from_pretrained('sea/demo', revision='{trained['model']['revision']}', dtype" in card
    assert trained["data"]["revision"] == trained["data"]["also"][0]["revision"] == shanties
    assert trained["data"]["eval_revision"] == commit("datasets/sea/measured", second.name)

    hub.repositories[f"datasets/{DATASET}"] = {"main": second, "before": main}
    hub.repositories["datasets/sea/measured"] = {"main": main, "before": second}
    recipe = tmp_path / "runs" / "one" / "resolved.yaml"
    shown, repeated = tuitune(("inspect FILE --json --rows 4:4", {}), (f"run {recipe} --name two", {}))
    assert "The second 3." in "".join(token["text"] for token in shown.answer()["tokens"])
    assert repeated.status == 0, repeated.err
    assert yaml.safe_load((tmp_path / "runs" / "two" / "resolved.yaml").read_text()) == trained
    one, two = (tmp_path / "runs" / name / "adapter" / "adapter_model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_a_large_dataset_is_not_downloaded_to_be_counted(tuitune: Tuitune, hub: Hub, tmp_path: Path) -> None:
    """Its rows are estimated from the first file and the sizes of all."""
    folder = tmp_path / "large"
    folder.mkdir()
    rows = [{"question": f"What is {n:03}?", "answer": "Words. " * 1000} for n in range(300)]
    write(folder / "train-0.jsonl", rows)
    for part in range(1, 20):
        (folder / f"train-{part}.jsonl").symlink_to(folder / "train-0.jsonl")
    hub.repositories["datasets/sea/large"] = {"main": folder}
    hub.asked.clear()
    (shown,) = tuitune(("inspect FILE --json", {"path": "hub:sea/large", "config": None}))
    data = shown.answer()
    assert (data["rows"], data["rows_estimated"]) == (6000, True)
    assert {path.rpartition("/")[2] for path in hub.asked if "/resolve/" in path and "train" in path} == {
        "train-0.jsonl"
    }


REFUSALS = """
from tuitune.hub.reach import refusal
for name in ("sea/a", "sea/b", "sea/a"):
    for what in ("model", "dataset"):
        assert "timed out" in str(refusal(name, what)), refusal(name, what)
"""


def test_a_hub_that_never_answers_is_waited_for_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        hub = Hub(f"http://127.0.0.1:{server.getsockname()[1]}")
        # As in a session: else huggingface_hub asks for something else first.
        environment = os.environ | hub.environment(tmp_path / "hf") | {"HF_HUB_DISABLE_TELEMETRY": "1"}
        subprocess.run([sys.executable, "-c", REFUSALS], env=environment, check=True)
        server.settimeout(0)
        server.accept()[0].close()
        with pytest.raises(BlockingIOError):
            server.accept()


def test_a_dataset_cannot_take_over_the_machine(tuitune: Tuitune, hub: Hub, tmp_path: Path) -> None:
    """No script is run, no folder of this name is read, and no file outside the repository is taken."""
    local = tmp_path / "sea" / "script"
    local.mkdir(parents=True)
    write(local / "train.jsonl", [{"question": "a", "answer": "b"}])
    for name in ("script", "elsewhere"):
        hub.repositories[f"datasets/sea/{name}"] = {"main": tmp_path / name}
        (tmp_path / name).mkdir()
    (tmp_path / "script" / "script.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (tmp_path / "elsewhere" / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files: {local / 'train.jsonl'}\n---\n"
    )
    script, elsewhere = tuitune(
        ("inspect FILE", {"path": "hub:sea/script", "config": None}),
        ("inspect FILE", {"path": "hub:sea/elsewhere", "config": None}),
    )
    assert "scripts are no longer supported" in script.refusal()
    assert "sea/elsewhere" in elsewhere.refusal()
    assert not (tmp_path / "ran").exists()
