"""Methods that weigh whole replies train as they say: start, figures, going on, passes of any size, what is held to."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.conftest import DEMO
from tests.engine.training import trained, without_probabilities
from tuitune.errors import TuituneError
from tuitune.recipe import Recipe
from tuitune.runs.events import Event, Finished, Started, Step
from tuitune.runs.folder import Run, RunWriter
from tuitune.train.control import Control
from tuitune.train.resume import resumption_of
from tuitune.train.run import train

STEPS, STOPPED_AT = 4, 2
METHODS = ("dpo", "orpo", "simpo", "kto")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen of the demo's pairs: runs here see each twice, so the reference is asked before the first step."""
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    file.write_text("".join((DEMO / "preferences.jsonl").read_text().splitlines(keepends=True)[:14]))
    return file


def recipe_of(pairs: Path, method: str, *changes: str) -> Recipe:
    return Recipe.load(
        DEMO / "demo_dpo.yaml",
        [
            f"method={method}",
            f"data.path={pairs}",
            "load_in_4bit=false",
            "data.eval_share=0.15",
            "lora.r=4",
            "lora.lora_dropout=0.1",
            f"max_steps={STEPS}",
            "learning_rate=1e-3",
            "train.warmup_steps=0",
            "eval_steps=0",
            "per_device_train_batch_size=4",
            "samples.max_new_tokens=2",
            *changes,
        ],
    )


@pytest.fixture(scope="module")
def whole(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A run of each method that nothing disturbed."""
    runs = tmp_path_factory.mktemp("whole")
    return {method: trained(recipe_of(pairs, method), runs, method)[0] for method in METHODS}


def weights_of(run: Run) -> dict[str, Any]:
    weights: dict[str, Any] = load_file(run.adapter / "adapter_model.safetensors")
    return weights


@pytest.mark.parametrize(("method", "begins"), [("dpo", 0.693147), ("kto", 0.5)])
def test_a_method_with_a_reference_begins_at_it_and_learns(whole: dict[str, Run], method: str, begins: float) -> None:
    history = whole[method].history()
    first, last = history.steps[0], history.steps[-1]
    assert first.loss == pytest.approx(begins, abs=1e-4)
    assert first.metrics["rewards/chosen"] == pytest.approx(0, abs=1e-4)
    assert last.metrics["rewards/margins" if method == "dpo" else "rewards/chosen"] > 0
    before, after = history.evaluations
    assert before.loss == pytest.approx(begins, abs=1e-4) and after.loss < before.loss
    assert history.plan is not None and history.plan.method == method


def test_evaluation_on_held_out_pairs_counts_each_pair(whole: dict[str, Run]) -> None:
    after = whole["dpo"].history().evaluations[-1]
    assert after.metrics["rewards/accuracies"] in (0.0, 0.5, 1.0)  # of two pairs
    assert after.metrics["rewards/margins"] == pytest.approx(
        after.metrics["rewards/chosen"] - after.metrics["rewards/rejected"], abs=1e-5
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_run_goes_on_bitwise_as_if_it_had_not_been(
    pairs: Path, whole: dict[str, Run], tmp_path: Path, method: str
) -> None:
    """Also the trap of a hidden second adapter: a checkpoint holds one adapter alone, which is what goes on."""

    def stop(event: Event, control: Control) -> None:
        if isinstance(event, Step) and event.step == STOPPED_AT:
            control.pause.set()
            control.stop.set()

    run, _ = trained(recipe_of(pairs, method), tmp_path, method, stop)
    checkpoint = run.checkpoints / f"checkpoint-{STOPPED_AT}"
    assert not [path for path in checkpoint.iterdir() if path.is_dir()], "an adapter beside the one that is trained"
    assert not (run.adapter / "ref").exists()
    writer = RunWriter(run)
    resumed = resumption_of(run, writer.append)
    writer.append(Started(run=method, attempt=resumed.attempt, pid=os.getpid()))
    train(run.resolved(), run, Control(), writer.append, resumed=resumed)
    writer.close()
    losses = [{step.step: step.loss for step in trained_run.history().steps} for trained_run in (run, whole[method])]
    assert losses[0] == losses[1] and len(losses[0]) == STEPS
    ours, theirs = weights_of(run), weights_of(whole[method])
    assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in theirs)


@pytest.mark.parametrize("method", METHODS)
def test_passes_of_half_the_size_train_the_same(pairs: Path, tmp_path: Path, method: str) -> None:
    """KTO too: its drift is measured over the step, not over a pass."""
    without_dropout = ("lora.lora_dropout=0", "max_steps=2", "data.eval_share=0")
    whole, _ = trained(recipe_of(pairs, method, *without_dropout), tmp_path, "whole")
    halves = ("per_device_train_batch_size=1", "gradient_accumulation_steps=4")
    halved, _ = trained(recipe_of(pairs, method, *without_dropout, *halves), tmp_path, "halved")
    ours, theirs = ([step.loss for step in run.history().steps] for run in (halved, whole))
    assert ours == pytest.approx(theirs, abs=2e-5)
    figures = [run.history().steps[-1].metrics for run in (halved, whole)]
    assert figures[0] == pytest.approx(figures[1], abs=2e-3)


def test_a_run_can_be_stopped_while_the_reference_is_asked(pairs: Path, tmp_path: Path) -> None:
    def stop(event: Event, control: Control) -> None:
        if getattr(event, "text", "").startswith("Asking the model"):
            control.stop.set()

    recipe = recipe_of(pairs, "dpo", "train.seed=1", "per_device_train_batch_size=1", "gradient_accumulation_steps=4")
    run, history = trained(recipe, tmp_path, "stopped", stop)
    assert isinstance(history.ended, Finished) and history.ended.status == "stopped"
    assert not history.steps and not run.adapter.exists()


def test_a_continued_adapter_is_held_to_what_it_was(pairs: Path, whole: dict[str, Run], tmp_path: Path) -> None:
    """Its reference is not the base: the loss begins at ln 2 although the adapter is far from nothing."""
    recipe = recipe_of(pairs, "dpo", f"lora.init_adapter={whole['orpo'].adapter}", "max_steps=1")
    _, history = trained(recipe, tmp_path, "continued")
    assert history.steps[0].loss == pytest.approx(0.693147, abs=2e-2)  # dropout is on
    assert history.evaluations[0].loss == pytest.approx(0.693147, abs=1e-4)


def alone(model: Any, rows: Any) -> Any:
    """Log-probabilities (rows, chosen and rejected) of the replies, each asked by itself with transformers alone."""
    import torch

    def logprob(ids: list[int], labels: list[int]) -> float:
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].float()
        counted = [place for place, label in enumerate(labels[1:]) if label != -100]
        logprobs = torch.log_softmax(logits, -1)[counted, [labels[place + 1] for place in counted]]
        return float(logprobs.sum())

    with torch.no_grad():
        return torch.tensor(
            [
                [logprob(row[f"{side}_input_ids"], row[f"{side}_labels"]) for side in ("chosen", "rejected")]
                for row in rows
            ]
        )


@pytest.mark.parametrize("begin", ["continued", "loftq"])
def test_the_reference_is_the_model_as_the_run_began_with_it(
    pairs: Path, whole: dict[str, Run], tmp_path: Path, begin: str
) -> None:
    """After a run of two steps: not its base without an adapter, and not the adapter that was trained."""
    from tuitune import backends
    from tuitune.backends.loading import begin_with_adapter
    from tuitune.data.prepare import prepare
    from tuitune.model.config import load_tokenizer
    from tuitune.runs.folder import create_run

    changes = [f"lora.init_adapter={whole['orpo'].adapter}"]
    if begin == "loftq":
        changes = ["load_in_4bit=true", "lora.init_lora_weights=loftq", "lora.r=64"]
    recipe = recipe_of(pairs, "dpo", "max_steps=2", "lora.lora_dropout=0", *changes)
    writer = create_run(recipe, tmp_path, begin)
    trained_model = train(recipe, writer.run, Control(), writer.append)
    writer.close()
    assert trained_model is not None
    prepared = prepare(recipe, load_tokenizer(recipe.model))
    backend = backends.choose(recipe)
    begun = backend.load(recipe)
    backend.attach(begun)
    if recipe.lora.init_adapter is not None:
        begin_with_adapter(begun, recipe.lora.init_adapter)
    backend.for_inference(begun)
    expected = alone(begun.model, prepared.train)
    with begun.model.disable_adapter():
        base = alone(begun.model, prepared.train)
    reference = trained_model.reference["train"]
    rounding = 0.03 if begin == "loftq" else 1e-2  # 4-bit products round more where tokens stand beside others
    assert (reference - expected).abs().max() < rounding < 0.2 * (reference - base).abs().max()
    # What the run says of the held-out pairs in the end is measured from there.
    after = writer.run.history().evaluations[-1].metrics
    backend.for_inference(trained_model)
    moved = alone(trained_model.model, prepared.eval) - alone(begun.model, prepared.eval)
    for side, title in enumerate(("rewards/chosen", "rewards/rejected")):
        assert after[title] == pytest.approx(0.1 * float(moved[:, side].mean()), abs=0.1 * rounding)


@pytest.mark.parametrize("method", ["dpo", "kto", "orpo"])
def test_a_model_without_probabilities_is_told_in_one_sentence(pairs: Path, tmp_path: Path, method: str) -> None:
    """A weight that is NaN, as a damaged file or an overflow leaves it."""
    recipe = recipe_of(pairs, method, f"model.name={without_probabilities(tmp_path)}", "data.eval_share=0")
    with pytest.raises(TuituneError) as failed:
        trained(recipe, tmp_path, method)
    before = "The model gives a reply of the data no probability (NaN or infinite) before it is trained: "
    sentence = before if method == "dpo" else "The loss is nan at step 1: "
    assert str(failed.value).startswith(sentence) and str(failed.value).endswith(".")


def test_single_replies_with_marks_are_learned_from(pairs: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    marked = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in rows
        for side in ("chosen", "rejected")
    ]
    file = tmp_path / "thumbs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in marked))
    _, history = trained(recipe_of(file, "kto", "max_steps=1"), tmp_path, "thumbs")
    assert history.steps[0].loss == pytest.approx(0.5, abs=1e-3)
    assert history.plan is not None and history.plan.rows + history.plan.eval_rows == 28


def test_a_model_of_which_nothing_would_be_trained_is_refused() -> None:
    from types import SimpleNamespace

    import torch

    from tuitune.train.run import require_trainable

    frozen: Any = SimpleNamespace(model=torch.nn.Linear(2, 2).requires_grad_(False))
    with pytest.raises(TuituneError, match="Nothing of this model would be trained: its adapter is frozen"):
        require_trainable(frozen)
