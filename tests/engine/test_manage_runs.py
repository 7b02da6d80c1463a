"""Runs are renamed, noted and deleted, and nothing that is not a run of tuitune's ever is."""

import os
import shutil
from pathlib import Path

import pytest

from tests.engine.records import plan, run, steps
from tuitune.errors import TuituneError, UnusableInput
from tuitune.runs.compare import Difference, differences, why_not_comparable
from tuitune.runs.events import Started
from tuitune.runs.folder import Run, RunWriter, all_runs, find_run
from tuitune.runs.manage import delete, deletion_question, find_own_run, rename, write_note
from tuitune.runs.summary import note_of, summarize


@pytest.fixture
def mine(tmp_path: Path) -> Run:
    return run(tmp_path / "runs", "mine", "m", 1_000, Started(run="mine", attempt=1, pid=1), plan(), *steps(1, 2))


def test_a_renamed_run_is_the_same_run(mine: Run) -> None:
    before = mine.history()
    renamed = rename(mine, "better-name")
    assert renamed.name == "better-name" and not mine.folder.exists()
    assert find_run("better-name", mine.folder.parent).history() == before


@pytest.mark.parametrize("name", ["", ".", "..", "../out", "a/b", "-x", "a b", "x" * 81, "\x1b[31m", "mine", "taken"])
def test_a_name_that_cannot_be_a_folders_is_refused(name: str, mine: Run) -> None:
    run(mine.folder.parent, "taken", "m", 1_000)
    with pytest.raises(UnusableInput):
        rename(mine, name)
    assert sorted(run.name for run in all_runs(mine.folder.parent)) == ["mine", "taken"]


def test_a_note_is_kept_shown_in_lists_and_removed(mine: Run) -> None:
    write_note(mine, "  too high a rate\nsecond line \ud800 ")
    assert note_of(mine) == summarize(mine).note == "too high a rate\nsecond line ?"
    with pytest.raises(UnusableInput, match="2,001 characters"):
        write_note(mine, "x" * 2_001)
    write_note(mine, "")
    assert note_of(mine) == "" and not mine.note_file.exists()


def test_a_live_run_is_neither_renamed_nor_deleted(mine: Run) -> None:
    writer = RunWriter(mine)
    for change in (delete, lambda run: rename(run, "other")):
        with pytest.raises(TuituneError, match=r"Run mine is in use by .*stop it first"):
            change(mine)
    writer.close()
    assert mine.events_file.exists()
    delete(mine)
    assert list(mine.folder.parent.iterdir()) == []


def test_deleting_follows_no_link(mine: Run, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "precious").write_text("precious")
    mine.exports.symlink_to(kept)
    (mine.folder / "file").symlink_to(kept / "precious")
    delete(mine)
    assert not mine.folder.exists() and (kept / "precious").read_text() == "precious"


def test_a_link_to_a_run_is_refused(mine: Run, tmp_path: Path) -> None:
    link = mine.folder.parent / "link"
    link.symlink_to(mine.folder)
    for named in ("link", str(link), f"{link}/"):
        with pytest.raises(UnusableInput, match="is a link"):
            find_own_run(named, mine.folder.parent)
    with pytest.raises(UnusableInput, match="not a folder that tuitune made"):
        delete(Run(link))
    assert mine.events_file.exists()
    assert find_own_run("mine", mine.folder.parent) == mine


def test_a_folder_of_the_users_own_is_never_deleted(mine: Run, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    shutil.copy(mine.recipe_file, project / "recipe.yaml")
    (project / "thesis.md").write_text("years of work")
    for folder in (project, tmp_path, mine.folder.parent, Path.cwd()):
        with pytest.raises(UnusableInput, match="not a folder that tuitune made"):
            delete(Run(folder))
    assert (project / "thesis.md").read_text() == "years of work"


def test_the_question_names_what_tuitune_did_not_make(mine: Run) -> None:
    assert "Among them" not in deletion_question(mine)
    (mine.folder / "thesis\x1b.md").write_text("years of work")
    question = deletion_question(mine)
    assert "Delete Run mine for good?" in question and "thesis␛.md" in question and str(mine.folder) in question


@pytest.mark.skipif(os.geteuid() == 0, reason="root may delete everything")
def test_what_cannot_be_deleted_is_said(mine: Run) -> None:
    mine.folder.parent.chmod(0o500)
    with pytest.raises(TuituneError, match="cannot be deleted"):
        delete(mine)
    mine.folder.parent.chmod(0o700)
    assert mine.events_file.exists()


def test_what_a_killed_deletion_left_is_no_run(mine: Run) -> None:
    mine.folder.rename(mine.folder.with_name(".tuitune-removing-mine"))
    assert all_runs(mine.folder.parent) == []


def test_recipes_are_compared_field_by_field(mine: Run, tmp_path: Path) -> None:
    other = run(tmp_path / "runs", "other", "m", 1_000)
    assert differences([mine, other]) == []
    recipe = mine.recipe()
    train, lora = recipe.train, recipe.lora
    changed = recipe.model_copy(
        update={
            "train": train.model_copy(update={"learning_rate": 1e-4}),
            "lora": lora.model_copy(update={"target_modules": ["q_proj"]}),
        }
    )
    other.keep_resolved(changed)  # what was trained counts, not what was asked for
    fields = differences([mine, other])
    assert fields == [
        Difference("lora.target_modules", ("auto", '["q_proj"]')),
        Difference("train.learning_rate", ("0.0002", "0.0001")),
    ]
    assert why_not_comparable(fields) is None
    other.recipe_file.write_text("model: [")
    other.resolved_file.unlink()
    with pytest.raises(UnusableInput, match="not valid YAML"):
        differences([mine, other])


@pytest.mark.parametrize(
    ("field", "why"),
    [("model.name", "models"), ("data.path", "data"), ("data.max_length", "data"), ("train.seed", "seeds")],
)
def test_losses_of_other_tokens_are_said_to_be(field: str, why: str) -> None:
    reason = why_not_comparable([Difference(field, ("a", "b"))])
    assert reason is not None and reason.startswith(f"Their {why} differ")
