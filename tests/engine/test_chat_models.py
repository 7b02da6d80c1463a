"""Sides of one base share it in memory; another base comes beside it only where it fits."""

import os
import shutil
from pathlib import Path

import psutil
import pytest

from tests.adapters import draw_adapter
from tuitune import backends
from tuitune.backends.loaded import LoadedModel
from tuitune.backends.transformers import TransformersBackend
from tuitune.chat.gguf_engine import GgufModel
from tuitune.chat.reply import reply
from tuitune.chat.sampling import Sampling
from tuitune.errors import TuituneError
from tuitune.export.card import mark
from tuitune.recipe import Recipe
from tuitune.runs.folder import Run, create_run
from tuitune.session import models as models_module
from tuitune.session.models import Models
from tuitune.train.checkpoints import keep_adapter, keep_checkpoint, staged_adapter, staged_checkpoints

QUESTIONS = ("What is the capital of France?", "Who are you?")


def held(models: Models, run: Run, checkpoint: str | None = None, *, beside: bool = True) -> LoadedModel:
    return models.of(run, checkpoint, beside=beside, notice=print, progress=lambda text, done, total: None)


def answers(loaded: LoadedModel, *, adapter: bool = True) -> list[str]:
    sampling = Sampling(max_new_tokens=8)
    return [reply(loaded, [{"role": "user", "content": text}], sampling, adapter=adapter).text for text in QUESTIONS]


def run_with_adapter(recipe: Recipe, runs: Path, name: str, *seeds: int) -> Run:
    """A run whose adapter says something else than its base; of a second seed it has a checkpoint of step 8."""
    writer = create_run(recipe, runs, name)
    run = writer.run
    loaded = TransformersBackend().load(recipe)
    loaded.backend.attach(loaded)
    for seed, keeps in zip(seeds, ("adapter", "checkpoint"), strict=False):
        draw_adapter(loaded.model, std=0.3, seed=seed)
        if keeps == "adapter":
            loaded.model.save_pretrained(staged_adapter(run))
            keep_adapter(run)
        else:
            loaded.model.save_pretrained(staged_checkpoints(run) / "checkpoint-8")
            keep_checkpoint(run, 8)
    writer.close()
    return run


def test_llama_cpp_is_started_anew_where_it_has_ended_or_the_file_is_another_one(
    tmp_path: Path, demo_recipe: Recipe, demo_gguf: Path
) -> None:
    run = run_with_adapter(demo_recipe, tmp_path, "one", 1)
    run.exports.mkdir()
    file = run.exports / "one-f16.gguf"
    shutil.copy(demo_gguf, file)
    mark(file, run, "gguf:f16")
    others = set(psutil.Process().children())
    models = Models()

    def loaded() -> tuple[GgufModel, psutil.Process]:
        model = models.gguf(run, None, "gguf", lambda text, done, total: None, lambda: False)
        (server,) = set(psutil.Process().children()) - others
        return model, server

    first, server = loaded()
    assert loaded() == (first, server)
    server.kill()
    server.wait(20)
    second, _server = loaded()
    assert second.reply([{"role": "user", "content": "Who are you?"}], Sampling(max_new_tokens=4)).tokens
    shutil.copy(demo_gguf, tmp_path / "new.gguf")
    os.replace(tmp_path / "new.gguf", file)
    third, server = loaded()
    assert third is not second
    models.close_gguf()
    assert not server.is_running()


def test_sides_of_one_base_share_it_and_answer_as_each_alone(
    tmp_path: Path, demo_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = demo_recipe.model_dump(mode="json")
    one = run_with_adapter(demo_recipe, tmp_path, "one", 1, 2)
    other_rank = Recipe.from_data({**data, "lora": {**data["lora"], "r": 8, "lora_alpha": 32}})
    two = run_with_adapter(other_rank, tmp_path, "two", 3)
    sides: list[tuple[Run, str | None]] = [(one, None), (two, None), (one, "8")]
    alone, base = [], []
    for run, checkpoint in sides:
        models = Models()
        alone.append(answers(held(models, run, checkpoint)))
        base.append(answers(held(models, run, checkpoint), adapter=False))
        models.unload()
    assert base[0] == base[1] == base[2] not in alone and alone[0] != alone[2]

    models = Models()
    first = held(models, one)
    loads: list[object] = []
    monkeypatch.setattr(backends, "load", lambda *arguments: loads.append(arguments))
    for _ in range(2):  # to and fro
        for (run, checkpoint), expected in zip(sides, alone, strict=True):
            loaded = held(models, run, checkpoint)
            assert loaded.model is first.model and answers(loaded) == expected
            assert answers(loaded, adapter=False) == base[0]
    assert not loads, "no base was loaded again"

    other = Run(tmp_path / "other")
    (tmp_path / "two").rename(other.folder)
    changed = other.resolved().model_dump(mode="json")
    changed["model"]["load_in_4bit"] = True
    other.keep_resolved(Recipe.from_data(changed))
    monkeypatch.setattr(models_module, "_available_bytes", lambda: 2**20)
    with pytest.raises(TuituneError, match="does not fit beside the model in memory"):
        held(models, other)
    assert answers(held(models, one)) == alone[0], "what was in memory is still there"
