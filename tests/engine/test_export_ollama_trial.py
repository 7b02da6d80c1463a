"""An Ollama folder is tried where an `ollama` is installed; what came of it is a sentence, and nothing stays there."""

from pathlib import Path

import pytest

from tests.engine.ollama_program import calls_in, put_on_path
from tuitune.export import Cancelled
from tuitune.export import ollama as exporting
from tuitune.export.ollama import tried


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An exported folder of an awkward name, and one for logs beside it."""
    (tmp_path / "logs").mkdir()
    path = tmp_path / "-my $(model)"
    path.mkdir()
    (path / "Modelfile").write_text("FROM ./model.gguf\n")
    return path


def trial(folder: Path, prompt: str = "Hello!", *, cancelled: bool = False) -> tuple[str, ...]:
    return tried(folder, prompt, folder.parent / "logs", lambda: cancelled)


def test_it_is_asked_under_a_name_that_is_removed_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = put_on_path(monkeypatch, folder.parent, "answers")
    assert trial(folder, "--verbose $(id)") == ("Tried in Ollama, which answered '--verbose $(id)' with: Arr!␛[2J",)
    create, run, rm = calls_in(calls)
    name = create[1]
    assert create == ["create", name, "-f", str(folder / "Modelfile")]
    assert run == ["run", name, "--", "--verbose $(id)"] and rm == ["rm", name]
    assert name.startswith("tuitune-trial-"), "no model of the user's has that name"


def test_one_that_does_not_take_it_is_told_in_its_own_words(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = put_on_path(monkeypatch, folder.parent, "refuses")
    (notice,) = trial(folder)
    assert notice == "Ollama was tried and did not take it (Error: could not connect to␇ ollama server)."
    assert [words[0] for words in calls_in(calls)] == ["create", "rm"]


def test_one_that_never_answers_is_left_after_its_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_on_path(monkeypatch, folder.parent, "hangs")
    monkeypatch.setattr(exporting, "_TRIAL_SECONDS", 0.5)
    assert trial(folder) == ("Ollama was tried and did not answer in time.",)


def test_the_user_can_stop_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_on_path(monkeypatch, folder.parent, "hangs")
    with pytest.raises(Cancelled):
        trial(folder, cancelled=True)


def test_without_one_nothing_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(folder))
    assert trial(folder) == ()
