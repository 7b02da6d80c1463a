"""Code that comes with a model, an adapter or a dataset never runs: neither Python files nor pickles."""

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import DEMO
from tests.security.pickles import plant
from tuitune.errors import TuituneError, UnusableInput
from tuitune.recipe import Recipe
from tuitune.runs.folder import Run
from tuitune.session.exporting import export
from tuitune.session.jobs import Jobs
from tuitune.session.questions import estimate
from tuitune.session.worker import Job

CODE = """
open({canary!r}, "w").close()
from transformers import LlamaConfig as Config, LlamaForCausalLM as Model, PreTrainedTokenizerFast as Tokenizer
"""
MAP = {
    "AutoConfig": "code.Config",
    "AutoModelForCausalLM": "code.Model",
    "AutoModelForImageTextToText": "code.Model",
    "AutoTokenizer": ["code.Tokenizer", "code.Tokenizer"],
}


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def model(tmp_path: Path, canary: Path) -> Path:
    """The demo's model as a repository that brings code of its own for everything."""
    folder = Path(shutil.copytree(DEMO / "demo_model", tmp_path / "model"))
    (folder / "code.py").write_text(CODE.format(canary=str(canary)))
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        file = folder / name
        settings = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps({**settings, "auto_map": MAP, "custom_generate": "code"}))
    return folder


def work(command: str) -> Job:
    return Job(command, lambda job: {}, on_part=lambda part: None, on_end=lambda end: None)


def trained(recipe: Recipe, tmp_path: Path) -> Run:
    jobs = Jobs(tmp_path / "socket", on_event=lambda: None)
    jobs.train(work("train"), recipe, str(tmp_path / "runs"), "run")
    assert jobs.run is not None
    return jobs.run


def of(model: Path, recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"name": str(model)})})


def test_a_models_own_code_never_runs(model: Path, canary: Path, demo_recipe: Recipe, tmp_path: Path) -> None:
    recipe = of(model, demo_recipe)
    run = trained(recipe, tmp_path)
    assert run.status() == "done"
    for file in (model / "code.py", *model.glob("*config.json")):  # and that of an adapter folder
        shutil.copy(file, run.adapter / file.name)
    (run.adapter / "manifest.json").unlink()
    estimate(work("estimate"), recipe)
    anew = Jobs(tmp_path / "socket", on_event=lambda: None)
    anew.chat(work("chat"), run, [{"role": "user", "content": "Hello!"}], sampling={"max_new_tokens": 2})
    export(work("export"), run, ["adapter", "merged_16bit", "script"])
    assert not canary.exists()


def test_a_model_of_unknown_architecture_does_not_run_its_code(
    model: Path, canary: Path, demo_recipe: Recipe, tmp_path: Path
) -> None:
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**settings, "model_type": "theirs", "architectures": ["Model"]}))
    with pytest.raises(UnusableInput):
        trained(of(model, demo_recipe), tmp_path)
    assert not canary.exists() and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside safetensors"])
def test_weights_in_a_pickle_are_never_loaded(beside: bool, canary: Path, demo_recipe: Recipe, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DEMO / "demo_model", tmp_path / "model"))
    for name in ("pytorch_model.bin", "model.bin", "training_args.bin", "adapter_model.bin"):
        plant(folder / name, canary)
    if beside:
        run = trained(of(folder, demo_recipe), tmp_path)
        assert run.status() == "done"
    else:
        (folder / "model.safetensors").unlink()
        with pytest.raises(TuituneError):
            trained(of(folder, demo_recipe), tmp_path)
    assert not canary.exists()


def test_an_adapter_in_a_pickle_is_never_loaded(canary: Path, demo_recipe: Recipe, tmp_path: Path) -> None:
    run = trained(demo_recipe, tmp_path)
    for name in ("adapter_model.bin", "training_args.bin", "optimizer.pt"):
        plant(run.adapter / name, canary)
    anew = Jobs(tmp_path / "socket", on_event=lambda: None)
    anew.chat(work("chat"), run, [{"role": "user", "content": "Hello!"}], sampling={"max_new_tokens": 2})
    (run.adapter / "adapter_model.safetensors").unlink()
    (run.adapter / "manifest.json").unlink()
    anew = Jobs(tmp_path / "socket", on_event=lambda: None)
    with pytest.raises(TuituneError):
        anew.chat(work("chat"), run, [{"role": "user", "content": "Hello!"}], sampling={"max_new_tokens": 2})
    assert not canary.exists()


@pytest.mark.parametrize("name", ["rows.py", "rows.pkl", "rows.pt", "rows.jsonl"])
def test_data_that_is_code_is_not_run(name: str, canary: Path, demo_recipe: Recipe, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    if name.endswith(".py"):
        (folder / name).write_text(f"open({str(canary)!r}, 'w').close()\n")
    else:
        plant(folder / name, canary)
    for path in (folder / name, folder):
        data = demo_recipe.data.model_copy(update={"path": str(path)})
        with pytest.raises(TuituneError):
            trained(demo_recipe.model_copy(update={"data": data}), tmp_path)
    assert not canary.exists()


def test_the_canary_sings(canary: Path, tmp_path: Path) -> None:
    """Or the tests above could not fail."""
    import pickle

    plant(tmp_path / "pickle", canary)
    pickle.loads((tmp_path / "pickle").read_bytes())
    assert canary.exists()
    canary.unlink()
    exec(CODE.format(canary=str(canary)), {})  # noqa: S102
    assert canary.exists()
