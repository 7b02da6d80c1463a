"""The data screen against a real session: rows and masks, unknown columns, and the audit."""

import json
import shutil
from pathlib import Path

import pytest
from textual.widgets import Input

from screens.app import TuituneApp
from screens.audit_lengths import lengths
from screens.columns import ColumnsScreen
from screens.data import DataScreen
from tests.conftest import DEMO
from tests.engine.hub_server import hub_server
from tests.screens.conftest import SIZE, screen_text, until, words
from tuitune.recipe import Recipe
from tuitune.recipe_sections import SourceSection


@pytest.fixture
def unknown(tmp_path: Path) -> Path:
    """A dataset whose columns say nothing of themselves; its second row repeats its first."""
    rows = [{"frage": f"What is {n}?", "antwort": f"It is {n}."} for n in (1, 1, *range(2, 40))]
    file = tmp_path / "unknown.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


async def test_columns_are_mapped_rows_browsed_and_findings_lead_to_rows(
    recipe: Recipe, unknown: Path, runs_folder: Path
) -> None:
    data = recipe.data.model_copy(update={"path": str(unknown)})
    app = TuituneApp(recipe.model_copy(update={"data": data}), runs_folder=runs_folder)
    async with app.run_test(size=SIZE) as pilot:
        await app.show_step("data")
        screen = app.screen
        assert isinstance(screen, DataScreen)
        await until(
            pilot, lambda: "no known format" in screen_text(pilot), seconds=60, what="the sentence on the format"
        )
        assert "^o sets them here." in words(pilot)

        await pilot.press("ctrl+o")
        await until(pilot, lambda: isinstance(app.screen, ColumnsScreen), seconds=30, what="the columns")
        app.screen.query_one("#column-0").value = "user"  # type: ignore[attr-defined]
        app.screen.query_one("#column-1").value = "assistant"  # type: ignore[attr-defined]
        await pilot.click("#use")
        await until(pilot, lambda: "▸It is 1." in screen_text(pilot), seconds=30, what="the first row")
        assert app.link.draft.get("data.columns") == {"user": "frage", "assistant": "antwort"}

        await pilot.press("ctrl+down", "ctrl+down")
        await until(pilot, lambda: "▸It is 2." in screen_text(pilot), seconds=30, what="the third row")
        await pilot.press("ctrl+g", "home", "shift+end", *"40", "enter")
        await until(pilot, lambda: "▸It is 39." in screen_text(pilot), seconds=30, what="the last row")

        app.screen.query_one("#row").focus()
        for key, number in (("p", 39), ("up", 38), ("n", 39), ("down", 40)):
            await pilot.press(key)
            await until(pilot, lambda number=number: f"Row {number} of 40" in screen_text(pilot), what=f"{key} moves")  # type: ignore[misc]

        await pilot.press("ctrl+t")
        await until(pilot, lambda: "40 of 40 rows are used" in screen_text(pilot), seconds=30, what="the audit")
        assert "1 row the same as row 1: take it out" in screen_text(pilot)
        await pilot.press("enter")
        await until(pilot, lambda: "Row 2 of 40" in screen_text(pilot) and "· the same as row 1" in screen_text(pilot))
        await pilot.press("escape")
        await until(
            pilot, lambda: "Enter shows such a row" in screen_text(pilot), seconds=30, what="the findings again"
        )
        await pilot.press("escape")
        await until(pilot, lambda: "Row 2 of 40" in screen_text(pilot), what="the rows again")
        assert app.screen is screen
        await pilot.press("3")
        await until(pilot, lambda: app.screen is not screen, what="the step of that number")


async def test_a_file_is_picked_from_the_tree_and_its_rows_are_shown(
    recipe: Recipe, unknown: Path, runs_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "two  spaces\x1b[31m.jsonl"
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / name).write_text(json.dumps({"question": "Which one?", "answer": "The picked one."}))
    monkeypatch.chdir(tmp_path / "here")
    columns = {"user": "frage", "assistant": "antwort"}
    data = recipe.data.model_copy(update={"path": str(unknown), "columns": columns})
    app = TuituneApp(recipe.model_copy(update={"data": data}), runs_folder=runs_folder)
    async with app.run_test(size=SIZE) as pilot:
        await app.show_step("data")
        await until(pilot, lambda: "▸It is 1." in screen_text(pilot), seconds=60, what="the first file's row")
        await pilot.press("ctrl+f")
        await until(pilot, lambda: "two spaces␛[31m.jsonl" in screen_text(pilot), seconds=10, what="the tree")
        await pilot.press("tab", "down", "enter")
        await until(pilot, lambda: "▸The picked one." in screen_text(pilot), seconds=30, what="its row")
        assert app.link.draft.get("data.path") == str(tmp_path / "here" / name)
        assert app.link.draft.get("data.columns") is None


async def test_a_dataset_of_the_hub_is_found_by_words_and_its_split_chosen(
    recipe: Recipe, tmp_path: Path, runs_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "shanties"
    folder.mkdir()
    for split in ("train", "test"):
        row = {"question": "Who sings?", "answer": f"The {split} crew."}
        (folder / f"{split}.jsonl").write_text(json.dumps(row))
    with hub_server() as hub:
        hub.repositories["datasets/sea/shanties"] = {"main": folder}
        hub.repositories["datasets/sea/secret"] = {"main": folder}
        hub.gated = {"datasets/sea/secret"}
        for name, value in hub.environment(tmp_path / "hf").items():
            monkeypatch.setenv(name, value)
        data = recipe.data.model_copy(update={"path": "sea"})
        app = TuituneApp(recipe.model_copy(update={"data": data}), runs_folder=runs_folder)
        async with app.run_test(size=SIZE) as pilot:
            await app.show_step("data")
            await until(
                pilot, lambda: "There is no dataset file" in screen_text(pilot), seconds=60, what="no such file"
            )
            await pilot.press("ctrl+s")
            await until(pilot, lambda: "sea/secret  1,000 downloads · gated" in screen_text(pilot), what="the search")
            await pilot.press("down", "enter")
            await until(pilot, lambda: "sea/secret is gated: accept" in screen_text(pilot), what="why it is refused")
            await pilot.press("up", "enter")
            await until(pilot, lambda: "configuration · split" in screen_text(pilot), what="the splits")
            await pilot.press("escape")
            await until(pilot, lambda: "Search the Hub's datasets" in screen_text(pilot), what="the search again")
            await pilot.press("enter")
            await until(pilot, lambda: "default · test" in screen_text(pilot), what="the splits again")
            await pilot.press("end", "enter")
            await until(pilot, lambda: "The test crew." in screen_text(pilot), what="a row of the split")
            assert app.link.draft.data["data"]["path"] == "hub:sea/shanties"
            assert [app.link.draft.get(f"data.{name}") for name in ("config", "split", "revision")] == [
                *("default", "test", None)
            ]


async def test_each_dataset_of_a_mix_is_shown_and_its_findings_lead_to_its_rows(
    recipe: Recipe, tmp_path: Path, runs_folder: Path
) -> None:
    """Also where the file of another has the same name."""
    (tmp_path / "few").mkdir()
    for name, count in (("many", 30), ("few/many", 10), ("held", 5)):
        rows = [{"question": f"{name} {n}?", "answer": f"It is {name} {n}."} for n in range(count)]
        if name == "few/many":
            rows[-1] = {"question": "many 0?", "answer": "It is many 0."}
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    changes = {
        "path": str(tmp_path / "many.jsonl"),
        "also": [SourceSection(path=str(tmp_path / "few" / "many.jsonl"), weight=2)],
        "eval_path": str(tmp_path / "held.jsonl"),
    }
    data = recipe.data.model_copy(update=changes)
    app = TuituneApp(recipe.model_copy(update={"data": data}), runs_folder=runs_folder)
    async with app.run_test(size=SIZE) as pilot:
        await app.show_step("data")
        await until(
            pilot,
            lambda: "many.jsonl (dataset 1) · Row 1 of 30" in screen_text(pilot),
            seconds=60,
            what="the first row",
        )
        shown = screen_text(pilot)
        assert "many.jsonl (dataset 1), 30 rows × 1 = 60% of what is drawn" in shown
        assert "many.jsonl (dataset 2), 10 rows × 2 = 40% of what is drawn" in shown
        assert "measured on: held.jsonl, 5 rows" in shown
        await pilot.press("ctrl+r")
        await until(pilot, lambda: "▸It is few/many 0." in screen_text(pilot), seconds=30, what="the second dataset")
        await pilot.press("ctrl+r")
        await until(pilot, lambda: "▸It is held 0." in screen_text(pilot), seconds=30, what="the evaluation's rows")
        await pilot.press("ctrl+t")
        told = "1 row the same as row 1 of many.jsonl (dataset 1)"
        await until(pilot, lambda: told in screen_text(pilot), seconds=30, what="the audit")
        await pilot.press("enter")
        await until(
            pilot,
            lambda: "many.jsonl (dataset 2) · Row 10 of 10" in screen_text(pilot),
            seconds=30,
            what="the repeated row",
        )


async def test_rows_that_cannot_be_used_are_told_beside_the_first_row_and_nothing_is_kept_from_another_dataset(
    recipe: Recipe, tmp_path: Path, runs_folder: Path
) -> None:
    rows = [{"question": f"{n}?", "answer": f"It is {n}." if n != 7 else None} for n in range(20)]
    (tmp_path / "gaps.jsonl").write_text("\n".join(map(json.dumps, [*rows, rows[0]])))
    data = recipe.data.model_copy(update={"path": str(tmp_path / "gaps.jsonl")})
    app = TuituneApp(recipe.model_copy(update={"data": data}), runs_folder=runs_folder)
    async with app.run_test(size=SIZE) as pilot:
        await app.show_step("data")
        await until(pilot, lambda: "1 of the first 21 rows cannot be used; ^t looks at all. Row 8: " in words(pilot))
        assert "Row 1 of 21" in screen_text(pilot)
        await pilot.press("ctrl+g", "home", "shift+end", "8", "enter")
        await until(pilot, lambda: '"answer": null' in screen_text(pilot), what="the row as it stands in the file")
        await pilot.press("ctrl+t")
        await until(pilot, lambda: "20 of 21 rows are used" in words(pilot), what="the audit")
        path = app.screen.query_one("#path", Input)
        path.focus()
        await pilot.press("end", "x")
        shown = words(pilot)
        assert "rows are used" not in shown and "Row 1 of" not in shown and "cannot be used" not in shown
        await pilot.press("enter")
        await until(pilot, lambda: "There is no dataset file" in words(pilot), what="no such file")
        await pilot.press("enter")
        await until(pilot, lambda: "There is no dataset file" in words(pilot), what="no such file, still")
        assert isinstance(app.screen, DataScreen)
        await pilot.press("backspace")
        assert "There is no dataset file" not in words(pilot)
        await pilot.press("enter")
        await until(pilot, lambda: "Row 1 of 21" in screen_text(pilot), what="the first row")
        assert isinstance(app.screen, DataScreen), "Enter has shown it first"
        await pilot.press("ctrl+g", "home", "shift+end", *"21", "enter")
        await until(pilot, lambda: "Row 21 of 21" in screen_text(pilot), what="the row that repeats the first")
        assert "the same as row 1" not in words(pilot), "the audit was of what stood there before"


async def test_the_audit_offers_a_max_length_and_enter_takes_it(app: TuituneApp) -> None:
    async with app.run_test(size=SIZE) as pilot:
        await app.show_step("data")
        await until(pilot, lambda: "Row 1 of" in screen_text(pilot), seconds=60, what="the first row")
        await pilot.press("ctrl+t")
        await until(pilot, lambda: "longer than max_length 64" in words(pilot), seconds=60, what="the audit")
        await pilot.press("end")
        await until(pilot, lambda: "keeps 100% whole" in words(pilot), what="what keeps every row")
        await pilot.press("enter")
        await until(pilot, lambda: "; 0 longer than" in words(pilot), what="the audit anew")
        assert app.link.draft.get("data.max_length") > 64 and "✂" not in screen_text(pilot)


def test_the_cut_stands_where_max_length_is() -> None:
    audit = {
        **{"rows": 10, "used": 10, "tokens": 1000, "trained_tokens": 500, "trained_share": 0.5, "truncated": 4},
        "token_percentiles": {"50": 50, "95": 200},
        "length_histogram": [[50, 5], [100, 1], [150, 0], [200, 4]],
    }
    lines = lengths(audit, 100).plain.splitlines()[-5:]
    assert [line.split()[0] for line in lines] == ["1–50", "51–100", "✂", "101–150", "151–200"]
    assert [line.count("█") for line in lines] == [36, 7, 0, 0, 29]
    assert "✂" not in lengths({**audit, "truncated": 0}, 200).plain
    assert "Rows by their tokens" in lengths({**audit, "token_percentiles": {}, "length_histogram": []}, 100).plain


async def test_a_base_model_without_a_chat_template_gets_one_by_a_key(
    recipe: Recipe, runs_folder: Path, tmp_path: Path
) -> None:
    """From the error to a row in two keys; another model takes its own template again."""
    base = tmp_path / "base"
    shutil.copytree(DEMO / "demo_model", base)
    (base / "chat_template.jinja").unlink()
    app = TuituneApp(
        recipe.model_copy(update={"model": recipe.model.model_copy(update={"name": str(base)})}),
        runs_folder=runs_folder,
    )
    async with app.run_test(size=SIZE) as pilot:
        await app.show_step("data")
        await until(pilot, lambda: "has no chat template" in words(pilot), what="what is wrong")
        assert "^l chooses one here." in words(pilot) and "^l Template" in words(pilot)
        await pilot.press("ctrl+l")
        await until(pilot, lambda: "How are turns marked?" in words(pilot), what="the templates")
        await pilot.press("enter")
        await until(pilot, lambda: "<|im_start|>" in words(pilot), what="a row in that template")
        assert "^l Template" not in words(pilot)
        await app.show_step("model")
        app.screen.query_one("#name", Input).value = str(DEMO / "demo_model")
        await until(pilot, lambda: app.link.draft.get("model.name") == str(DEMO / "demo_model"), what="the other model")
        assert app.link.draft.get("model.chat_template") is None
