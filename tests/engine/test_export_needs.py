"""Before an export begins, what it needs is known: room, memory, the base model, llama.cpp's converter."""

import collections
import hashlib
import io
import shutil
import tarfile
import time
from pathlib import Path

import psutil
import pytest

from tests.engine.exporting import export
from tuitune.atomic import publish
from tuitune.errors import TuituneError, UnusableInput
from tuitune.export import llama_cpp, place, preflight, times
from tuitune.export.needs import require_exportable, wanted_exports
from tuitune.recipe import Recipe
from tuitune.recipe_sections import ExportSection
from tuitune.runs.folder import Run, create_run

DEMO = Path(__file__).parents[2] / "sample_data" / "demo_model"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No export of before tells how long one takes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own-cache"))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of the demo model that says it has an adapter."""
    recipe = Recipe.from_data({"model": {"name": str(DEMO)}, "data": {"path": str(tmp_path / "chats.jsonl")}})
    writer = create_run(recipe, tmp_path / "runs", "ready")
    writer.close()
    (tmp_path / "chats.jsonl").write_text('{"messages": []}\n')
    writer.run.adapter.mkdir()
    (writer.run.adapter / "adapter_config.json").write_text("{}")
    (writer.run.adapter / "adapter_model.safetensors").write_bytes(b"0" * 1000)
    return writer.run


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder laid out like llama.cpp's sources, and named as theirs."""
    for name in ("conversion", "gguf-py/gguf"):
        (tmp_path / "llama.cpp" / name).mkdir(parents=True)
    for name in ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py"):
        (tmp_path / "llama.cpp" / name).touch()
    monkeypatch.setenv(llama_cpp.VARIABLE, str(tmp_path / "llama.cpp"))
    return tmp_path / "llama.cpp"


def test_a_finished_run_is_ready_for_every_kind(run: Run, sources: Path) -> None:
    needs = {need.kind: need for need in preflight(run)}
    assert all(need.ready and need.missing is None and need.question is None for need in needs.values())
    weights = (DEMO / "model.safetensors").stat().st_size
    assert needs["merged_16bit"].bytes == pytest.approx(weights, rel=0.01)
    assert needs["gguf:q8_0"].bytes == pytest.approx(weights * 17 / 32, rel=0.01)
    assert needs["adapter"].bytes == 1002


def test_a_recipe_is_told_what_its_run_can_become(run: Run, sources: Path) -> None:
    needs = {need.kind: need for need in preflight(run.recipe())}
    assert all(need.ready for need in needs.values())
    projections = 5 * 16 * (2 * (256 + 256) + 2 * (256 + 128) + 3 * (256 + 768))  # q o, k v, gate up down
    assert needs["adapter"].bytes == 4 * projections


def test_what_was_made_here_before_tells_how_long_it_takes(run: Run, tmp_path: Path) -> None:
    """Kinds share parts; what was made of another size, or nowhere, is told by what writing takes at the least."""
    before = {readiness.kind: readiness for readiness in preflight(run)}
    assert not before["gguf:q4_k_m"].measured and 0 < before["gguf:q4_k_m"].parts["merge"] < 60
    assert "writing alone" in before["gguf:q4_k_m"].takes()
    weights = (DEMO / "model.safetensors").stat().st_size
    model, quantised = before["merged_16bit"], before["gguf:q4_k_m"]
    assert quantised.disk_bytes == pytest.approx(2 * weights + weights * 4.85 / 16, rel=0.02), "both models before it"
    assert model.memory_bytes == pytest.approx(1.1 * weights, rel=0.02)

    for name in quantised.parts:
        with times.timed(name, lambda: weights):
            time.sleep(0.02)
    took = next(took for took in times.recorded() if took.name == "merge")
    assert took.bytes == weights and took.seconds >= 0.02
    after = {readiness.kind: readiness for readiness in preflight(run)}
    assert after["gguf:q4_k_m"].measured and "writing alone" not in after["gguf:q4_k_m"].takes()
    assert after["gguf:q4_k_m"].parts["merge"] == pytest.approx(took.seconds, rel=0.02)
    assert not after["gguf:q8_0"].measured
    assert after["gguf:q8_0"].parts.keys() & quantised.parts.keys() == {"merge", "ask the adapter"}
    assert times.seconds_of(times.Part("merge", 100 * weights, 0), times.recorded()) is None, "loading does not scale"


def test_a_part_that_fails_and_lines_that_are_damaged_tell_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full"), times.timed("merge", lambda: 1000):
        raise OSError("full")
    assert times.recorded() == []
    with times.timed("merge", lambda: 1000):
        time.sleep(0.01)
    with times.file().open("a") as lines:
        lines.write('{"part": "merge"}\nnonsense\n')
    (took,) = times.recorded()
    assert (took.name, took.bytes) == ("merge", 1000) and took.seconds >= 0.01
    times.file().unlink()
    times.file().symlink_to(tmp_path / "elsewhere")
    with times.timed("merge", lambda: 1000):
        pass
    assert not (tmp_path / "elsewhere").exists(), "nothing is written through a link"


def test_what_a_recipe_is_to_become_is_looked_at_before_its_run(run: Run, sources: Path, tmp_path: Path) -> None:
    def wanting(*kinds: str, **given: str) -> Recipe:
        return run.recipe().model_copy(update={"export": ExportSection(to=list(kinds), **given)})

    require_exportable(wanting("adapter", "gguf:q8_0"), tmp_path)
    assert [readiness.kind for readiness in wanted_exports(wanting("gguf:q8_0"), tmp_path)] == ["gguf:q8_0"]
    assert wanted_exports(wanting(), tmp_path) == []
    with pytest.raises(
        UnusableInput, match=r"export \(gguf:iq2_xs\) could not be made here, so training did not begin"
    ):
        require_exportable(wanting("gguf:iq2_xs"), tmp_path)
    with pytest.raises(UnusableInput, match="'gguf:q9' is not a kind of export"):
        require_exportable(wanting("gguf:q9"), tmp_path)


def test_without_the_converter_a_gguf_is_ready_but_asks_for_the_download(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(llama_cpp.VARIABLE, raising=False)
    needs = {need.kind: need for need in preflight(run)}
    assert needs["gguf:f16"].ready and "77 MB" in str(needs["gguf:f16"].question)
    assert needs["merged_16bit"].question is None
    with pytest.raises(TuituneError, match="may not be downloaded"):
        export(run, ["gguf:f16"], None, lambda *_: None, lambda question: False, lambda: False)
    assert not any(run.exports.iterdir()) and not (tmp_path / "cache").exists()


def test_a_named_folder_without_the_converter_is_said_for_gguf_alone(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(llama_cpp.VARIABLE, str(tmp_path))
    needs = {need.kind: need for need in preflight(run)}
    assert needs["merged_16bit"].ready and not needs["gguf:f16"].ready
    assert "holds no convert_hf_to_gguf.py" in str(needs["gguf:f16"].missing)


def test_a_base_model_that_is_gone_leaves_the_adapter(run: Run, sources: Path, tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").unlink()
    run.recipe_file.write_text(run.recipe_file.read_text().replace(str(DEMO), str(tmp_path / "base")))
    needs = {need.kind: need for need in preflight(run)}
    assert needs["adapter"].ready
    assert "holds no .safetensors weights" in str(needs["gguf:q8_0"].missing)


def test_a_dataset_that_is_gone_is_said_for_script_and_notebook_alone(run: Run, sources: Path) -> None:
    Path(run.recipe().data.path).unlink()
    needs = {need.kind: need for need in preflight(run)}
    assert [kind for kind, need in needs.items() if not need.ready] == ["script", "notebook"]
    assert "is no longer there" in str(needs["script"].missing)


def test_a_dataset_of_the_hub_is_no_missing_file(run: Run, sources: Path) -> None:
    text = run.recipe_file.read_text()
    run.recipe_file.write_text(text.replace(run.recipe().data.path, "hub:someone/chats"))
    assert {need.kind: need for need in preflight(run)}["script"].ready


def test_a_converter_of_which_files_were_cleaned_away_is_fetched_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "source.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion/base.py", "gguf-py/gguf/gguf.py"):
            tar.addfile(tarfile.TarInfo(f"source/vendor/llama.cpp/{name}"))
    monkeypatch.setattr(llama_cpp, "SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(llama_cpp, "_download", lambda *_: archive)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(llama_cpp.VARIABLE, raising=False)
    folder = llama_cpp.obtain(lambda question: True, lambda done, total: None, lambda: False)
    (folder / "convert_hf_to_gguf.py").unlink()
    assert llama_cpp.find() is None
    assert llama_cpp.obtain(lambda question: True, lambda done, total: None, lambda: False) == llama_cpp.find()


def test_a_run_without_an_adapter_is_ready_for_nothing(run: Run, sources: Path) -> None:
    shutil.rmtree(run.adapter)
    assert not any(need.ready for need in preflight(run))


def test_too_little_disk_is_said_with_both_figures(run: Run, sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 5 * 10**6, 5 * 10**6))
    needs = {need.kind: need for need in preflight(run)}
    assert needs["adapter"].ready and not needs["merged_16bit"].ready
    # The q8_0 file would fit, but not beside the merged model that it is made from.
    assert "14.5 MB" in str(needs["gguf:q8_0"].missing) and "5.0 MB free" in str(needs["gguf:q8_0"].missing)
    with pytest.raises(TuituneError, match="make room"):
        export(run, ["adapter", "gguf:q8_0"], None, lambda *_: None, lambda question: True, lambda: False)
    assert not any(run.exports.iterdir())


def test_too_little_memory_is_said_before_the_system_ends_the_process(
    run: Run, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = collections.namedtuple("memory", "available")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(1_000_000))
    assert "of memory" in str({need.kind: need for need in preflight(run)}["merged_16bit"].missing)


def test_an_archive_that_is_not_the_pinned_one_is_never_unpacked(tmp_path: Path) -> None:
    archive = tmp_path / "llama_cpp_python-0.3.36.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo("llama_cpp_python-0.3.36/vendor/llama.cpp/convert_hf_to_gguf.py")
        member.size = 5
        tar.addfile(member, io.BytesIO(b"evil\n"))
    with pytest.raises(TuituneError, match="is not the pinned one"):
        llama_cpp.unpack(archive, tmp_path / "unpacked")
    assert not (tmp_path / "unpacked").exists()


def test_two_exports_do_not_write_to_one_folder(run: Run) -> None:
    with place.locked(run.exports), pytest.raises(TuituneError, match="Another export is writing"):
        export(run, ["adapter"], None, lambda *_: None, lambda question: True, lambda: False)


def test_what_a_killed_export_left_is_tidied_and_the_former_one_comes_back(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / ".tuitune-making-abc").mkdir(parents=True)
    (out / ".tuitune-previous-adapter").mkdir()
    (out / ".tuitune-previous-adapter" / "weights").write_text("good")
    with place.locked(out):
        assert [path.name for path in out.iterdir()] == ["adapter"]
    assert (out / "adapter" / "weights").read_text() == "good"


def test_folders_of_the_users_own_beside_the_exports_stay(tmp_path: Path) -> None:
    names = {".making-music", ".previous-notes", "notes"}
    for name in names:
        (tmp_path / "home" / name).mkdir(parents=True)
    with place.locked(tmp_path / "home"):
        assert {path.name for path in (tmp_path / "home").iterdir()} == names


def test_an_export_that_was_moved_to_another_disk_is_followed_by_a_new_one(tmp_path: Path) -> None:
    for name in ("out", "elsewhere", "made"):
        (tmp_path / name).mkdir()
    (tmp_path / "out" / "adapter").symlink_to(tmp_path / "elsewhere")
    with place.locked(tmp_path / "out"):
        publish(tmp_path / "made", tmp_path / "out" / "adapter")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["adapter"]
    assert not (tmp_path / "out" / "adapter").is_symlink() and (tmp_path / "elsewhere").is_dir()


def test_a_file_where_the_folder_should_be_is_one_sentence(run: Run, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(TuituneError, match=r"cannot be used .*: choose another folder"):
        export(run, ["adapter"], tmp_path / "taken", lambda *_: None, lambda question: True, lambda: False)


def test_no_kind_at_all_is_unusable(run: Run) -> None:
    with pytest.raises(UnusableInput, match="Say what to export to"):
        export(run, [], None, lambda *_: None, lambda question: True, lambda: False)
