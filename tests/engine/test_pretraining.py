"""Continued pretraining: embeddings and head have a learning rate of their own, stay tied, and go on as they were."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import DEMO
from tests.engine.training import trained
from tuitune.recipe import Recipe
from tuitune.runs.events import Event, Started, Step
from tuitune.runs.folder import Run, RunWriter
from tuitune.train.control import Control
from tuitune.train.methods.pretrain import RATE_SHARE
from tuitune.train.resume import resumption_of
from tuitune.train.run import train

STEPS = 3


def recipe_of(folder: Path) -> Recipe:
    rows = [
        {"text": f"The house number {number} stands beside the sea, and nobody lives there."} for number in range(24)
    ]
    file = folder / "text.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Recipe.from_data(
        {
            "model": {"name": str(DEMO / "demo_model"), "load_in_4bit": False, "backend": "transformers"},
            "data": {"path": str(file), "max_length": 32},
            "method": {"name": "pretrain", "embedding_learning_rate": 1e-4},
            "lora": {"r": 4, "modules_to_save": ["embed_tokens", "lm_head"]},
            "train": {"max_steps": STEPS, "gradient_accumulation_steps": 1, "warmup_steps": 0, "learning_rate": 1e-3},
            "samples": {"prompts": ["The house"], "max_new_tokens": 2},
        }
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("pretrain")
    return trained(recipe_of(folder), folder / "runs", "whole")[0]


def test_embeddings_are_trained_at_a_rate_of_their_own(whole: Run) -> None:
    assert whole.history().steps[-1].loss < whole.history().steps[0].loss
    state = torch.load(whole.checkpoints / f"checkpoint-{STEPS}" / "optimizer.pt", weights_only=True)
    *others, embeddings = state["param_groups"]
    assert embeddings[RATE_SHARE] == pytest.approx(0.1) and embeddings["initial_lr"] == pytest.approx(1e-4)
    assert all(group["initial_lr"] == pytest.approx(1e-3) for group in others)


def test_it_goes_on_with_its_groups_as_if_it_had_not_been_stopped(whole: Run, tmp_path: Path) -> None:
    def stop(event: Event, control: Control) -> None:
        if isinstance(event, Step) and event.step == 1:
            control.pause.set()
            control.stop.set()

    run, _ = trained(whole.recipe(), tmp_path, "stopped", stop)
    writer = RunWriter(run)
    resumed = resumption_of(run, writer.append)
    writer.append(Started(run=run.name, attempt=resumed.attempt, pid=os.getpid()))
    train(run.resolved(), run, Control(), writer.append, resumed=resumed)
    writer.close()
    ours, theirs = (load_file(trained_run.adapter / "adapter_model.safetensors") for trained_run in (run, whole))
    assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in theirs)
