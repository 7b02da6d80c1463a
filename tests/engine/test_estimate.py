"""What an estimate says: parameters counted from config.json alone, steps, tokens, and whether memory suffices."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DEMO
from tuitune.errors import UnusableInput
from tuitune.estimate import Rows, Shape, estimate, longest_batch_tokens, memory_of, shape_of, steps_of, verdict
from tuitune.recipe import Recipe

GIB = 2**30
LLAMA_1B = {
    "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256,
    "tie_word_embeddings": True,
}  # fmt: skip


def recipe(model: Path, **sections: Any) -> Recipe:
    return Recipe.from_data({"model": {"name": str(model)}, "data": {"path": str(DEMO / "pirate.jsonl")}, **sections})


@pytest.fixture
def llama_1b(tmp_path: Path) -> Path:
    """Llama 3.2 1B as far as its config goes; no weights."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_1B))
    return tmp_path


def test_parameters_of_a_known_model_are_counted_exactly(llama_1b: Path) -> None:
    shape = shape_of(recipe(llama_1b))
    assert shape.total_parameters == 1_235_814_400
    assert shape.linear_parameters == 16 * (2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192)
    assert shape.adapter_parameters == 11_272_192  # what Unsloth prints for r=16 on all seven projections


def test_the_adapter_counts_what_a_real_one_has() -> None:
    from tuitune import backends

    used = recipe(DEMO / "demo_model", lora={"r": 8, "target_modules": ["q_proj", "down_proj"]})
    backend = backends.choose(used)
    loaded = backend.load(used)
    backend.attach(loaded)
    trained = sum(p.numel() for p in loaded.model.parameters() if p.requires_grad)
    assert shape_of(used).adapter_parameters == trained


def test_an_estimate_of_the_demo_needs_no_weights(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(DEMO / "demo_model", model, ignore=shutil.ignore_patterns("*.safetensors"))
    found = estimate(recipe(model, train={"max_steps": -1, "num_train_epochs": 2}))
    assert found.rows and found.tokens and found.trained_tokens
    assert found.rows > 100
    assert found.trained_tokens < found.tokens
    assert found.steps == 2 * -(-found.rows // 8)
    assert found.verdict == "fits"
    data = json.loads(json.dumps(found.as_dict()))
    assert data["memory"]["total_bytes"] == sum(v for k, v in data["memory"].items() if k != "total_bytes")
    assert 0 < data["trainable_share"] < 0.2
    assert "fits in" in found.as_text()


@pytest.mark.parametrize(
    ("rows", "batch", "accumulation", "epochs", "steps"),
    [(8, 2, 4, 1, 1), (9, 2, 4, 1, 2), (100, 2, 4, 1, 13), (100, 2, 4, 0.5, 7), (1, 2, 4, 3, 3)],
)
def test_steps_are_the_trainers(rows: int, batch: int, accumulation: int, epochs: float, steps: int) -> None:
    train = {
        "max_steps": -1, "num_train_epochs": epochs,
        "per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation,
    }  # fmt: skip
    assert steps_of(recipe(Path("m"), train=train), rows) == steps


def test_steps_are_unknown_without_rows_unless_they_are_fixed() -> None:
    assert steps_of(recipe(Path("m"), train={"max_steps": -1}), None) is None
    assert steps_of(recipe(Path("m")), None) == 60


def test_the_longest_batch_is_of_the_longest_rows() -> None:
    rows = Rows(count=4, tokens=1000, trained_tokens=500, longest=(400, 300, 200, 100))
    used = recipe(Path("m"), train={"per_device_train_batch_size": 3})
    assert longest_batch_tokens(used, rows) == 1200
    assert longest_batch_tokens(used, rows, padding_free=True) == 900
    assert longest_batch_tokens(used, None) == 3 * 2048


# Measured on an H200 (torch 2.11, Unsloth 2026.10.7): parameters, 4-bit, checkpointing, tokens in the batch, GiB held.
LLAMA_8B = Shape(4096, 14336, 1024, 32, 128256, 8_030_261_248, 6_979_321_856, 41_943_040)
ONE_B = Shape(2048, 8192, 512, 16, 128256, 1_235_814_400, 973_078_528, 11_272_192)


@pytest.mark.parametrize(
    ("shape", "in_4bit", "checkpointing", "tokens", "measured"),
    [
        (ONE_B, True, False, 3334, 5.430),
        (ONE_B, True, True, 3334, 3.086),
        (ONE_B, True, False, 23025, 23.846),
        (ONE_B, True, True, 23025, 4.215),
        (ONE_B, False, False, 3334, 6.938),
        (ONE_B, False, False, 23025, 25.320),
        (ONE_B, False, True, 23025, 5.611),
        (LLAMA_8B, True, False, 3334, 18.207),
        (LLAMA_8B, True, False, 11805, 46.797),
        (LLAMA_8B, True, True, 11805, 8.951),
        (LLAMA_8B, False, False, 11805, 56.723),
        (LLAMA_8B, False, True, 11805, 18.479),
    ],
)
def test_memory_is_what_a_gpu_really_held(
    shape: Shape, in_4bit: bool, checkpointing: bool, tokens: int, measured: float
) -> None:
    train = {"gradient_checkpointing": checkpointing, "optim": "adamw_8bit"}
    used = recipe(Path("m"), train=train)
    used = used.model_copy(update={"model": used.model.model_copy(update={"load_in_4bit": in_4bit})})
    found = memory_of(used, shape, tokens, backend="unsloth", card_bytes=140 * GIB).total_bytes / GIB
    assert found == pytest.approx(measured, rel=0.10)


def test_more_of_anything_never_takes_less() -> None:
    def total(tokens: int, backend: str = "unsloth", **train: Any) -> int:
        used = recipe(Path("m"), train=train)
        return memory_of(used, ONE_B, tokens, backend=backend, card_bytes=140 * GIB).total_bytes

    assert total(1000) < total(2000) < total(4000)
    assert total(20000, gradient_checkpointing=True) < total(20000, gradient_checkpointing=False)
    assert total(4000) < total(4000, "transformers")


@pytest.mark.parametrize(("needed", "word"), [(10, "fits"), (89, "fits"), (91, "tight"), (101, "does not fit")])
def test_the_verdict_leaves_a_margin(needed: int, word: str) -> None:
    assert verdict(needed * GIB, 100 * GIB) == word


def test_a_large_data_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuitune.estimate._READ_UP_TO_BYTES", 100)
    found = estimate(recipe(DEMO / "demo_model", train={"max_steps": -1}))
    assert (found.rows, found.steps, found.longest_batch_tokens) == (None, None, 2 * 2048)
    assert "known once the data is read" in found.as_text()


def test_target_modules_of_another_architecture_are_refused_before_any_weight_is_read(llama_1b: Path) -> None:
    with pytest.raises(UnusableInput, match="no layer named query_key_value"):
        shape_of(recipe(llama_1b, lora={"target_modules": ["query_key_value"]}))
