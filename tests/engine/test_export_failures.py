"""An export that cannot be made is one sentence, leaves nothing half made, and takes no other's place."""

import json
import resource
import shutil
from pathlib import Path

import pytest

from tests.conftest import DEMO
from tests.engine.exporting import export, moved_run, never, quiet, require_converter, yes
from tuitune import export as engine
from tuitune.errors import TuituneError, UnusableInput
from tuitune.export import Cancelled, Exported, NotExported
from tuitune.recipe import Recipe
from tuitune.runs.folder import Run, create_run

MODEL = DEMO / "demo_model"
PIRATE = DEMO / "pirate.jsonl"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return moved_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def exported(run: Run) -> dict[str, Exported]:
    """What was exported before anything goes wrong."""
    require_converter()
    return {made.kind: made for made in export(run, ["merged_16bit", "gguf:q8_0"], None, quiet, yes, never)}


def test_an_adapter_with_nan_is_refused_and_the_earlier_exports_stay(
    run: Run, exported: dict[str, Exported], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    broken = Run(tmp_path / run.name)
    shutil.copytree(run.folder, broken.folder)
    weights = load_file(broken.adapter / "adapter_model.safetensors")
    weights[next(iter(weights))][0, 0] = float("nan")
    save_file(weights, broken.adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    before = {path: path.read_bytes() for path in broken.exports.rglob("*") if path.is_file()}
    for kind in ("adapter", "merged_16bit", "gguf:f16"):
        with pytest.raises(TuituneError, match=r"(?i)nan"):
            export(broken, [kind], None, quiet, yes, never)
    assert {path: path.read_bytes() for path in broken.exports.rglob("*") if path.is_file()} == before


def test_stopping_the_conversion_leaves_nothing_half_made(
    run: Run, exported: dict[str, Exported], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(exported["merged_16bit"].path, out / "merged_16bit")
    converting = False

    def progress(kind: str, text: str, done: int | None, total: int | None) -> None:
        nonlocal converting
        converting = text.startswith("Converting")

    with pytest.raises(Cancelled):
        export(run, ["gguf:q8_0"], out, progress, yes, lambda: converting)
    assert [path.name for path in out.iterdir()] == ["merged_16bit"]


@pytest.mark.cold
def test_a_disk_that_fills_up_is_one_sentence_and_leaves_nothing(
    run: Run, exported: dict[str, Exported], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(exported["merged_16bit"].path, out / "merged_16bit")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, before[1]))  # no file can be longer, for children too
    try:
        with pytest.raises(TuituneError, match="make room there"):
            export(run, ["gguf:q8_0"], out, quiet, yes, never)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in out.iterdir()] == ["merged_16bit"]


def test_a_kind_that_fails_keeps_no_other_from_being_made(run: Run, tmp_path: Path) -> None:
    (tmp_path / "script").mkdir()  # the user's own: known at once, so it is said before the work begins
    said: list[str] = []
    ended = engine.export(
        run, ["script", "adapter", "merged_16bit"], tmp_path, lambda kind, *_: said.append(kind), yes, never
    )
    first = next(ended)
    assert isinstance(first, NotExported) and first.kind == "script" and not said
    second = next(ended)
    assert isinstance(second, Exported) and second.kind == "adapter"
    assert second.path.is_dir() and "merged_16bit" not in said, "it is told before the next is begun"
    assert [result.kind for result in ended] == ["merged_16bit"]


def test_a_merge_that_fails_is_not_tried_again_for_what_needs_it(
    run: Run, exported: dict[str, Exported], tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(MODEL, base)
    writer = create_run(Recipe.from_data({"model": {"name": str(base)}, "data": {"path": str(PIRATE)}}), tmp_path)
    writer.close()
    shutil.copytree(run.adapter, writer.run.adapter)
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    said: list[tuple[str, str]] = []
    ended = [
        *engine.export(
            writer.run,
            ["adapter", "merged_16bit", "gguf:f16"],
            None,
            lambda kind, text, *_: said.append((kind, text)),
            yes,
            never,
        )
    ]
    assert [(type(result), result.kind) for result in ended] == [
        (Exported, "adapter"),
        (NotExported, "merged_16bit"),
        (NotExported, "gguf:f16"),
    ]
    assert {kind for kind, text in said} == {"adapter", "merged_16bit"}
    assert [folder.name for folder in writer.run.exports.iterdir()] == ["adapter"]


def test_an_unknown_kind_names_the_kinds_there_are(run: Run) -> None:
    with pytest.raises(
        UnusableInput, match="'gguf:q9' is not a kind of export: choose from adapter, adapter_gguf, merged_16bit, "
    ):
        export(run, ["adapter", "gguf:q9"], None, quiet, yes, never)
    assert not (run.exports / "gguf:q9").exists()


def test_a_run_that_trained_nothing_has_nothing_to_export(tmp_path: Path) -> None:
    recipe = Recipe.from_data({"model": {"name": str(MODEL)}, "data": {"path": str(PIRATE)}})
    writer = create_run(recipe, tmp_path)
    writer.close()
    with pytest.raises(UnusableInput, match="adapter"):
        export(writer.run, ["adapter"], None, quiet, yes, never)


def test_a_folder_of_the_users_own_is_not_replaced(run: Run, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "letters.txt").write_text("mine")
    with pytest.raises(UnusableInput, match="is not an export of tuitune's"):
        export(run, ["adapter"], tmp_path, quiet, yes, never)
    assert (tmp_path / "adapter" / "letters.txt").read_text() == "mine"


def test_a_file_of_the_users_own_is_not_replaced(run: Run, exported: dict[str, Exported], tmp_path: Path) -> None:
    """Nor one that was put in the place of an earlier export, nor a link to another disk."""
    file = tmp_path / exported["gguf:q8_0"].path.name
    file.write_bytes(b"another program's")
    with pytest.raises(UnusableInput, match=r"q8_0\.gguf exists and is not an export of tuitune's: move it away"):
        export(run, ["gguf:q8_0"], tmp_path, quiet, yes, never)
    assert file.read_bytes() == b"another program's"
    (mark,) = exported["gguf:q8_0"].path.parent.glob(".*q8_0.gguf.tuitune_export.json")
    shutil.copy(mark, tmp_path)
    with pytest.raises(UnusableInput, match="is not an export of tuitune's"):
        export(run, ["gguf:q8_0"], tmp_path, quiet, yes, never)
    assert file.read_bytes() == b"another program's"
    file.unlink()
    file.symlink_to(tmp_path / "on another disk")
    with pytest.raises(UnusableInput, match="is not an export of tuitune's"):
        export(run, ["gguf:q8_0"], tmp_path, quiet, yes, never)
    assert file.is_symlink()
    # What tuitune made is made anew.
    shutil.copytree(exported["merged_16bit"].path, tmp_path / "merged_16bit")
    file.unlink()
    shutil.copy(exported["gguf:q8_0"].path, file)
    made_at = file.stat().st_mtime_ns
    (result,) = export(run, ["gguf:q8_0"], tmp_path, quiet, yes, never)
    assert result.path == file and file.stat().st_mtime_ns > made_at


def test_an_unknown_way_of_splitting_words_is_refused_rather_than_guessed(
    run: Run, exported: dict[str, Exported], tmp_path: Path
) -> None:
    merged = tmp_path / "out" / "merged_16bit"
    shutil.copytree(exported["merged_16bit"].path, merged)
    tokenizer = json.loads((merged / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": r"\w+|\W"}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, level]}
    (merged / "tokenizer.json").write_text(json.dumps(tokenizer))
    said: list[str] = []
    with pytest.raises(TuituneError, match=r"llama.cpp has no name for the pattern .* Export merged_16bit"):
        export(run, ["gguf:f16"], merged.parent, lambda kind, text, done, total: said.append(text), yes, never)
    assert set(said) == {"Converting to GGUF"}, "the merged model that was there is of the same adapter, so it is taken"
    assert [path.name for path in merged.parent.iterdir()] == ["merged_16bit"]
