"""An export goes to the Hub: private, only what belongs to it, and on behind what was there when the line broke."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import DEMO
from tests.engine.hub_uploads import UploadHub, upload_hub
from tuitune.errors import TuituneError, UnusableInput
from tuitune.hub.upload import Uploaded, require_writable, upload
from tuitune.recipe import Recipe
from tuitune.recipe_sections import ExportSection


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    from huggingface_hub import constants

    with upload_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # which has a server of its own
        monkeypatch.setenv("HF_TOKEN", "hf_good")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield hub


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name in (
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "tuitune_export.json",
        ".env",
        "x.bin",
    ):
        (folder / name).write_text(f"{name} " * 20)
    return [*folder.iterdir()]


def send(files: list[Path], name: str, **given: bool) -> Uploaded:
    public = given.get("public", False)
    return upload(files, name, public=public, message="pirate", progress=lambda *_: None, cancelled=lambda: False)


def test_an_upload_is_private_and_holds_only_what_belongs_to_an_export(hub: UploadHub, files: list[Path]) -> None:
    uploaded = send(files, "pirate")
    assert uploaded.commit_url.startswith(f"{hub.endpoint}/ada/pirate/commit/") and hub.private["ada/pirate"]
    assert hub.files["ada/pirate"] == {
        file.name: file.read_bytes() for file in files if file.name not in (".env", "x.bin")
    }
    assert send(files, "crew/pirate", public=True).repository.name == "crew/pirate"
    assert not hub.private["crew/pirate"]


def test_a_run_for_the_hub_begins_only_where_its_repository_may_be_written(
    hub: UploadHub, demo_recipe: Recipe, tmp_path: Path
) -> None:
    from tuitune.export.needs import require_exportable

    def of(repository: str, *kinds: str) -> Recipe:
        return demo_recipe.model_copy(update={"export": ExportSection(to=list(kinds), hub_repo=repository)})

    require_exportable(of("pirate", "hub:adapter"), tmp_path)
    require_exportable(of("crew/pirate"), tmp_path)
    assert not hub.files, "only asked"
    with pytest.raises(UnusableInput, match=r"training did not begin. The Hub token belongs to ada, which cannot"):
        require_exportable(of("someone/pirate"), tmp_path)
    hub.files["ada/novel"] = {"chapter.txt": b"Call me"}
    with pytest.raises(UnusableInput, match="taken by something that tuitune did not upload"):
        require_exportable(of("novel", "hub:adapter"), tmp_path)
    hub.role = "read"
    with pytest.raises(UnusableInput, match="token may only read"):
        require_exportable(of("pirate"), tmp_path)


def test_the_command_refuses_such_a_run_and_says_it_beforehand(hub: UploadHub, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_good"}

    def tuitune(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-P", "-m", "tuitune", *words, "--set", "export.hub_repo=someone/pirate"]
        return subprocess.run(argv, check=False, capture_output=True, text=True, timeout=120, env=environment)

    said = tuitune("estimate", str(DEMO / "demo.yaml"), "--set", "export.to=[adapter, hub:adapter]")
    assert "Export:  adapter ✔ Takes" in said.stdout
    assert "Export:  hub:adapter ✘ The Hub token belongs to ada, which cannot write to someone/pirate" in said.stdout
    refused = tuitune("run", str(DEMO / "demo.yaml"), "--runs", str(tmp_path / "own"))
    assert refused.returncode == 2 and "training did not begin" in refused.stderr
    assert not (tmp_path / "own").exists() or not any((tmp_path / "own").iterdir())


def test_what_a_link_leads_to_is_not_uploaded(hub: UploadHub, files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "key").write_text("private")
    link = files[0].with_name("vocab.txt")
    link.symlink_to(tmp_path / "key")
    with pytest.raises(UnusableInput, match=r"vocab\.txt is a link"):
        send([*files, link], "pirate")
    assert not hub.files


def test_a_broken_connection_is_said_and_the_next_upload_goes_on(hub: UploadHub, files: list[Path]) -> None:
    hub.break_after = 2
    with pytest.raises(TuituneError, match="goes on"):
        send(files, "pirate")
    assert "tuitune_export.json" in hub.files["ada/pirate"] and len(hub.files["ada/pirate"]) == 2
    hub.break_after = None
    assert send(files, "pirate").skipped == 2 and len(hub.files["ada/pirate"]) == 4
    commits = hub.commits
    assert send(files, "pirate").skipped == 4 and hub.commits == commits


def test_what_cannot_be_written_is_said_before_anything_is_made(
    hub: UploadHub, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.files["ada/mine"] = {"model.safetensors": b"another's"}
    for name, words in (
        (None, "needs a name"),
        ("a b", "cannot name"),
        ("../x", "cannot name"),
        ("other/pirate", "cannot write to other/pirate: choose one of ada, crew"),
        ("mine", "is taken by something that tuitune did not upload"),
    ):
        with pytest.raises(UnusableInput, match=words):
            require_writable(name)
    hub.role = "read"
    with pytest.raises(UnusableInput, match="may only read"):
        require_writable("pirate")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(TuituneError, match="does not know this token"):
        require_writable("pirate")
    assert not any(line.startswith("POST") for line in hub.log)
