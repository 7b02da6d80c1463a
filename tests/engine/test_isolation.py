"""Before a run's first step: are the rows of a batch kept apart, and what happens where they are not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.architectures import build
from tests.conftest import DEMO
from tuitune import backends
from tuitune.backends.loaded import LoadedModel
from tuitune.data.prepare import prepare
from tuitune.export.card import model_card
from tuitune.model.config import load_tokenizer
from tuitune.recipe import Recipe
from tuitune.runs.events import Plan
from tuitune.runs.folder import create_run
from tuitune.train.batching import IGNORED
from tuitune.train.isolation import Isolation, prove_isolation, settle_batches

HOLDS = Isolation(
    rows=3,
    tokens=500,
    leak=0.0,
    repeat=0.0,
    loss_difference=1e-4,
    loss_floor=1e-3,
    gradient_cosine=0.9999,
    cosine_floor=0.9999,
    seconds=0.5,
    warm_up_seconds=3.0,
)


def laid_end_to_end(model: Path, **sections: dict[str, Any]) -> tuple[LoadedModel, Any]:
    """A model with a fresh adapter whose batches hold their rows end to end, and the demo's rows."""
    recipe = Recipe.from_data(
        {
            "model": {"name": str(model), "backend": "transformers", "load_in_4bit": False},
            "data": {"path": str(DEMO / "pirate.jsonl")},
            **sections,
        }
    )
    loaded = backends.choose(recipe).load(recipe)
    loaded.backend.attach(loaded)
    loaded.backend.for_training(loaded)
    loaded.padding_free = True
    return loaded, prepare(recipe, load_tokenizer(recipe.model)).train


def test_rows_that_attend_to_themselves_alone_stay_end_to_end() -> None:
    loaded, rows = laid_end_to_end(DEMO / "demo_model")
    said: list[str] = []
    batches = settle_batches(loaded, rows, said.append)
    assert (batches.kind, batches.notice, loaded.padding_free) == ("end to end", None, True)
    assert batches.isolation.leak == batches.isolation.repeat == 0.0
    assert abs(batches.isolation.loss_difference) < 1e-5
    assert batches.isolation.gradient_cosine > 0.999999
    assert said == [
        "Compiling kernels, once; the next run finds them",
        "Checking that the rows of a batch are kept apart",
    ]


@pytest.mark.parametrize("architecture", ["qwen3_5_text", "falcon_h1"])
def test_a_model_whose_state_runs_on_into_the_next_row_is_padded(architecture: str, tmp_path: Path) -> None:
    """On a CPU nothing tells linear attention, its convolution or Mamba where a row ends."""
    loaded, rows = laid_end_to_end(build(architecture, tmp_path))
    batches = settle_batches(loaded, rows)
    assert (batches.kind, loaded.padding_free) == ("padded", False)
    assert batches.notice is not None
    assert batches.notice.startswith("Rows are padded and grouped by length, because laid end to end a row's tokens ")
    assert batches.isolation.holds


def test_the_check_leaves_weights_gradients_and_dropout_as_they_were() -> None:
    import torch

    loaded, rows = laid_end_to_end(DEMO / "demo_model", lora={"lora_dropout": 0.5})
    before = {name: parameter.detach().clone() for name, parameter in loaded.model.named_parameters()}
    state = torch.random.get_rng_state()
    isolation = prove_isolation(loaded, rows)
    assert isolation.holds, isolation.problem
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[name], parameter) for name, parameter in loaded.model.named_parameters())
    assert all(parameter.grad is None for parameter in loaded.model.parameters())
    assert all(m.training for m in loaded.model.modules() if isinstance(m, torch.nn.Dropout))


def test_rows_are_compared_where_they_are_trained() -> None:
    """A long prompt is cut away; short rows, and datasets of one row, are taken as they are."""
    loaded, _ = laid_end_to_end(DEMO / "demo_model")
    ids = [5 + i % 300 for i in range(1200)]
    long_prompt = {"input_ids": ids, "labels": [IGNORED] * 1100 + ids[1100:]}
    isolation = prove_isolation(loaded, [long_prompt])
    assert isolation.tokens == 193 + 251 + 127
    assert isolation.holds
    short = prove_isolation(loaded, [{"input_ids": ids[:9], "labels": ids[:9]}])
    assert short.tokens == 27


@pytest.mark.parametrize(
    ("measured", "problem"),
    [
        ({}, None),
        ({"leak": 1e-7}, "a row's tokens change the loss of other rows, by 1e-07"),
        ({"leak": 1e-7, "repeat": 5e-8}, None),
        ({"leak": float("nan")}, "a row's tokens change the loss of other rows, by nan"),
        ({"loss_difference": -0.01}, "their loss differs from that of each row alone by 0.01"),
        ({"loss_difference": 0.01, "loss_floor": 0.005}, None),
        ({"gradient_cosine": 0.99}, "their gradient differs from that of each row alone (cosine 0.9900)"),
        ({"gradient_cosine": 0.99, "cosine_floor": 0.997}, None),
        ({"gradient_cosine": float("nan")}, "their gradient differs from that of each row alone (cosine nan)"),
    ],
)
def test_what_is_measured_is_held_against_rounding(measured: dict[str, float], problem: str | None) -> None:
    isolation = replace(HOLDS, **measured)  # type: ignore[arg-type]
    assert isolation.problem == problem
    assert isolation.holds == (problem is None)


@pytest.mark.parametrize(("batches", "leak"), [("end to end", 0.0), ("padded", 2e-6)])
def test_the_model_card_tells_what_was_measured(demo_recipe: Recipe, tmp_path: Path, batches: str, leak: float) -> None:
    writer = create_run(demo_recipe, tmp_path / "runs", "run")
    isolation = replace(HOLDS, leak=leak).as_dict()
    plan = Plan(
        backend="unsloth",
        device="NVIDIA H200",
        rows=300,
        eval_rows=0,
        dropped_rows=0,
        tokens=90_000,
        trained_tokens=30_000,
        trainable_parameters=1,
        total_parameters=2,
        total_steps=60,
        batches=batches,
        attention="torch flash varlen",
        isolation=isolation,
    )
    writer.append(plan)
    writer.close()
    assert writer.run.history().plan == plan
    card = " ".join(model_card(writer.run, "adapter").split())
    assert f"{batches} (attention: torch flash varlen)" in card
    assert ("left the loss of the others as it was, to the last bit" in card) == (leak == 0)
    assert "had a cosine of 0.99990 with that of its rows alone" in card
