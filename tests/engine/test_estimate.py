"""What an estimate says: parameters counted from config.json alone, steps, tokens, and whether memory suffices."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import memory_estimate
from tests.conftest import DEMO
from tuitune.errors import UnusableInput
from tuitune.machine.hardware import Gpu
from tuitune.plan.estimate import Estimate, estimate, steps_of
from tuitune.plan.memory import Rows, Shape, longest_batch_tokens, memory_of, shape_of, verdict
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


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"learning_rate": 2e-3}, []),  # the demo's own
        ({"learning_rate": 0.02}, ["learning_rate 0.02 is high"]),
        ({"max_steps": 3, "warmup_steps": 3}, ["warmup_steps 3 is not less"]),
        ({"max_steps": 1000}, ["Each row would be seen"]),
    ],
)
def test_settings_that_spoil_a_run_are_told_before_it(settings: dict[str, Any], says: list[str]) -> None:
    estimated = estimate(Recipe.load(DEMO / "demo.yaml", [f"train.{name}={value}" for name, value in settings.items()]))
    assert len(estimated.warnings) == len(says), estimated.warnings
    assert all(warning.startswith(start) for warning, start in zip(estimated.warnings, says, strict=True))
    assert all(f"! {warning}" in estimated.as_text() for warning in estimated.warnings)


def test_a_disk_too_small_for_checkpoints_is_told_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank of 64 on the demo's 60 steps: as many checkpoints as are kept at once, one a step."""
    wide = Recipe.load(DEMO / "demo.yaml", ["lora.r=64", "save_steps=1"])
    expected = estimate(wide)
    assert expected.disk_bytes == expected.trainable_parameters * (4 * 12 + 4)
    assert "for checkpoints and adapter" in expected.as_text() and not any("disk" in text for text in expected.warnings)
    monkeypatch.setattr("tuitune.plan.estimate.disk_free_bytes", lambda folder: expected.disk_bytes - 1)
    assert any("keep runs on another disk" in text for text in estimate(wide).warnings)


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
    estimated = estimate(recipe(model, train={"max_steps": -1, "num_train_epochs": 2}))
    assert estimated.rows and estimated.tokens and estimated.trained_tokens
    assert estimated.rows > 100
    assert estimated.trained_tokens < estimated.tokens
    assert estimated.steps == 2 * -(-estimated.rows // 8)
    assert estimated.verdict == "fits"
    data = json.loads(json.dumps(estimated.as_dict()))
    assert data["memory"]["total_bytes"] == sum(v for k, v in data["memory"].items() if k != "total_bytes")
    assert 0 < data["trainable_share"] < 0.2
    assert "fits in" in estimated.as_text()


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


def test_memory_is_what_a_gpu_really_held() -> None:
    """Never 3% under and at most 10% over, for whole runs too, to which nothing was fitted."""
    recorded = memory_estimate.recorded()
    assert len(recorded["rows"]) >= 24
    for row in recorded["rows"] + recorded["whole_runs"]:
        assert -0.03 < row["error"] < 0.10, row
    assert recorded["mean_error"] <= 0.05
    assert recorded == json.loads(memory_estimate.RESULT.read_text()), (
        "run python -m benchmarks.memory_estimate --recorded"
    )


ONE_B = Shape(2048, 8192, 512, 16, 128256, 1_235_814_400, 973_078_528, 11_272_192)


def test_more_of_anything_never_takes_less() -> None:
    def total(tokens: int, backend: str = "unsloth", **train: Any) -> int:
        used = recipe(Path("m"), train=train)
        return memory_of(used, ONE_B, tokens, backend=backend, card_bytes=140 * GIB).total_bytes

    assert total(1000) < total(2000) < total(4000)
    assert total(20000, gradient_checkpointing=True) < total(20000, gradient_checkpointing=False)
    assert total(4000) < total(4000, "transformers")


def test_16_bit_is_offered_with_its_peak_where_it_fits_on_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Gpu(0, "NVIDIA H200", "GPU-a", 140 * GIB, 0, "580", (9, 0))
    monkeypatch.setattr("tuitune.plan.estimate.chosen_gpu", lambda: card)
    estimated = estimate(recipe(DEMO / "demo_model"))
    assert estimated.bytes_in_16bit is not None
    assert estimated.bytes_in_16bit > estimated.memory.total_bytes - 100 * 2**20
    assert "model.load_in_4bit: false" in estimated.as_text()
    whole = recipe(DEMO / "demo_model")
    in_16bit = whole.model_copy(update={"model": whole.model.model_copy(update={"load_in_4bit": False})})
    assert estimate(in_16bit).bytes_in_16bit is None
    monkeypatch.setattr("tuitune.plan.estimate.chosen_gpu", lambda: None)
    assert estimate(recipe(DEMO / "demo_model")).bytes_in_16bit is None


def test_cards_that_share_the_weights_are_offered_where_one_does_not_hold_them(
    llama_1b: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1.24 billion parameters in 16-bit do not fit into 3.6 GiB beside what a pass takes; a share of them does."""
    cards = [Gpu(place, "Small", f"GPU-{place}", int(3.6 * GIB), 0, "580", (9, 0)) for place in range(4)]
    monkeypatch.setattr("tuitune.plan.estimate.chosen_gpu", lambda: cards[0])
    monkeypatch.setattr("tuitune.plan.estimate.visible_gpus", lambda: cards)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (DEMO / "demo_model" / file).is_file():
            shutil.copy(DEMO / "demo_model" / file, llama_1b)

    def estimated(**train: Any) -> Estimate:
        model = {"name": str(llama_1b), "load_in_4bit": False, "backend": "transformers"}
        rows = {"per_device_train_batch_size": 1, "gradient_checkpointing": True}
        return estimate(
            Recipe.from_data({**recipe(llama_1b, train=rows | train).model_dump(mode="json"), "model": model})
        )

    alone = estimated()
    assert alone.verdict == "does not fit" and alone.shared_by == 1
    (offer,) = (text for text in alone.warnings if "One card does not hold it, but" in text)
    cards_needed = int(offer.split("but ")[1].split()[0])
    together = estimated(gpus=list(range(cards_needed)))
    assert together.verdict != "does not fit" and together.shared_by == cards_needed
    assert f"each of {cards_needed} cards that share the frozen weights" in together.as_text()
    assert not any("One card does not hold it" in text for text in together.warnings)
    many_rows = {"per_device_train_batch_size": 64, "gradient_checkpointing": False}
    monkeypatch.setattr("tuitune.plan.estimate.chosen_gpu", lambda: replace(cards[0], total_bytes=5 * GIB))
    large = estimated(**many_rows)
    assert large.verdict == "does not fit", "of that pass, and not of the weights"
    assert not any("One card does not hold it" in text for text in large.warnings)
    monkeypatch.setattr("tuitune.plan.estimate.chosen_gpu", lambda: cards[0])
    refused = estimated(gpus="all", shard=False)
    assert refused.verdict == "does not fit" and any("train.shard at auto" in text for text in refused.warnings)


@pytest.mark.parametrize(("needed", "word"), [(10, "fits"), (89, "fits"), (91, "tight"), (101, "does not fit")])
def test_the_verdict_leaves_a_margin(needed: int, word: str) -> None:
    assert verdict(needed * GIB, 100 * GIB) == word


def test_a_large_data_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuitune.plan.estimate._READ_UP_TO_BYTES", 100)
    estimated = estimate(recipe(DEMO / "demo_model", train={"max_steps": -1}))
    assert (estimated.rows, estimated.steps, estimated.longest_batch_tokens) == (None, None, 2 * 2048)
    assert "known once the data is read" in estimated.as_text()


def test_target_modules_of_another_architecture_are_refused_before_any_weight_is_read(llama_1b: Path) -> None:
    with pytest.raises(UnusableInput, match="no layer named query_key_value"):
        shape_of(recipe(llama_1b, lora={"target_modules": ["query_key_value"]}))


def test_layers_that_differ_in_their_heads_count_with_the_largest(tmp_path: Path) -> None:
    """Gemma 4's layers that see the whole text have wider heads than the others."""
    from tests.architectures import build

    shape = shape_of(Recipe.from_data({"model": {"name": str(build("gemma4_text", tmp_path))}, "data": {"path": "d"}}))
    assert shape.key_value == 2 * 128
