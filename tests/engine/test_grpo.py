"""GRPO on the demo model: what a step learns from, how it weighs it, and what is refused before a model is loaded."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import DEMO
from tests.engine.training import trained, without_probabilities
from tuitune.errors import TuituneError, UnusableInput
from tuitune.method_sections import GRPO
from tuitune.recipe import Recipe
from tuitune.reward_sections import PythonFile
from tuitune.rewards.confirmed import confirm
from tuitune.rewards.judge import RewardFailed
from tuitune.runs.events import Checkpoint, Completions, Event, Finished, Step
from tuitune.runs.folder import RunWriter
from tuitune.train.check import check
from tuitune.train.control import Control
from tuitune.train.policy_loss import Tokens, policy_loss, token_weights
from tuitune.train.resume import resumption_of
from tuitune.train.rollouts import advantages
from tuitune.train.run import train

ANIMALS = "An? [a-z]+ says [a-z]+\\."
PROMPTS = ["Name an animal.", "Say an animal.", "Tell me one animal.", "Pick an animal.", "I need an animal."]


def recipe_of(folder: Path, *changes: str, prompts: list[str] = PROMPTS, **method: Any) -> Recipe:
    """A short run over a few prompts, in 16-bit, which is exact on a CPU."""
    data = folder / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    raw = {
        "model": {"name": str(DEMO / "demo_model"), "load_in_4bit": False},
        "data": {"path": str(data), "max_length": 64},
        "method": {
            "name": "grpo",
            "rewards": [{"name": "format", "pattern": ANIMALS}, {"name": "length", "most": 9, "weight": 0.5}],
            "num_generations": 4,
            "max_completion_length": 12,
            **method,
        },
        "train": {
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1e-3,
            "warmup_steps": 0,
            "save_steps": 2,
            "eval_steps": 0,
        },
        "samples": {"prompts": ["Name an animal."], "max_new_tokens": 4},
    }
    return Recipe.from_data(raw, changes=list(changes))


def test_a_run_tells_its_rewards_and_shows_the_best_and_the_worst_answer_of_each_step(tmp_path: Path) -> None:
    events: list[Event] = []
    run, history = trained(recipe_of(tmp_path), tmp_path, "run", lambda event, control: events.append(event))
    assert history.ended is not None and run.adapter.is_dir() and len(history.steps) == 4
    metrics = history.steps[0].metrics
    assert metrics["reward"] == pytest.approx(metrics["rewards/format/mean"] + 0.5 * metrics["rewards/length/mean"])
    assert 0 <= metrics["completions/clipped_ratio"] <= 1 and 1 <= metrics["completions/mean_length"] <= 12
    assert metrics["entropy"] > 0 and 0 < metrics["generating"] < 1
    assert metrics["sampling_difference"] < 1e-4, "the decoder's probabilities are the training's"
    answers = [event for event in events if isinstance(event, Completions)]
    assert [(answer.step, answer.rank) for answer in answers[:2]] == [(1, "best"), (1, "worst")]
    assert answers[0].reward >= answers[1].reward and set(answers[0].values) == {"format", "length"}
    assert answers[0].prompt in PROMPTS and len(answers) == 8


def test_passes_of_half_the_size_train_the_same(tmp_path: Path) -> None:
    weights = []
    for name, changes in (
        ("whole", []),
        ("halves", ["per_device_train_batch_size=2", "gradient_accumulation_steps=4"]),
    ):
        run, _ = trained(recipe_of(tmp_path, "max_steps=2", *changes, beta=0.1), tmp_path, name)
        weights.append(adapter(run.adapter))
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=2e-5) for name in weights[0])


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    weights: dict[str, torch.Tensor] = load_file(folder / "adapter_model.safetensors")
    return weights


def test_a_stop_inside_a_generation_ends_at_the_step_before(tmp_path: Path) -> None:
    """The second generation's rewards would be computed for a minute: the run is stopped meanwhile."""
    file, begun = tmp_path / "rewards.py", tmp_path / "begun"
    file.write_text(
        "import pathlib, time\ncalls = []\ndef score(completions):\n    calls.append(1)\n    if len(calls) > 1:\n"
        f"        pathlib.Path({str(begun)!r}).touch()\n        time.sleep(60)\n"
        "    return [float(len(reply)) for reply in completions]\n"
    )
    recipe = recipe_of(tmp_path, "save_steps=50", rewards=[{"name": "python", "function": f"{file}:score"}])
    assert isinstance(recipe.method, GRPO) and isinstance(recipe.method.rewards[0], PythonFile)
    confirm(recipe.method.rewards[0])
    controls: list[Control] = []
    ended = threading.Event()

    def stop_once_begun() -> None:
        while not begun.exists() and not ended.wait(0.05):
            pass
        controls[0].stop.set()

    thread = threading.Thread(target=stop_once_begun)

    def watch(event: Event, control: Control) -> None:
        if not controls:
            controls.append(control)
            thread.start()

    began = time.monotonic()
    try:
        run, history = trained(recipe, tmp_path, "run", watch)
    finally:
        ended.set()
        thread.join()
    assert history.step == 1 and run.adapter.is_dir() and time.monotonic() - began < 60
    assert [path.name for path in run.checkpoints.iterdir() if path.name.startswith("checkpoint")] == ["checkpoint-1"]
    assert isinstance(history.ended, Finished) and history.ended.status == "stopped"


def test_saves_wait_for_the_end_of_a_generation(tmp_path: Path) -> None:
    saved: list[int] = []

    def ask(event: Event, control: Control) -> None:
        if isinstance(event, Checkpoint):
            saved.append(event.step)
        if isinstance(event, Completions) and event.step == 1:
            control.save.set()

    recipe = recipe_of(tmp_path, "max_steps=6", "save_steps=50", num_iterations=3)
    _, history = trained(recipe, tmp_path, "run", ask)
    assert saved == [3, 6]
    steps = history.steps
    assert all(step.metrics["clip_ratio"] == 0 for step in (steps[0], steps[3])), "new answers are on-policy"
    assert "reward" in steps[0].metrics and steps[1].metrics["reward"] == steps[0].metrics["reward"]


def test_what_cannot_make_a_step_is_refused_with_the_numbers(tmp_path: Path) -> None:
    with pytest.raises(UnusableInput, match=r"a step has 8 answers .* \(3\) does not divide.*num_generations to 2"):
        recipe_of(tmp_path, num_generations=3)
    with pytest.raises(UnusableInput, match=r"A step needs 2 prompts \(8 answers, 4 to each\) and the data has 1: add"):
        trained(recipe_of(tmp_path, prompts=["Name an animal."]), tmp_path, "few")
    with pytest.raises(UnusableInput, match=r"method.rewards.0.name is 'exact' but should be one of exact_match, "):
        recipe_of(tmp_path, rewards=[{"name": "exact"}])
    with pytest.raises(
        UnusableInput, match=r"method.rewards.0.size is not an option of that reward \(allowed: name, weight"
    ):
        recipe_of(tmp_path, rewards=[{"name": "exact_match", "size": 3}])
    with pytest.raises(
        UnusableInput, match=r"numeric_match needs the column answer, which the rows of prompts.jsonl lack: they have p"
    ):
        check(recipe_of(tmp_path, rewards=[{"name": "numeric_match"}]))


def test_prompts_that_are_too_long_are_left_out_and_that_is_told(tmp_path: Path) -> None:
    notices: list[str] = []
    recipe = recipe_of(tmp_path, "max_steps=1", "max_length=20", prompts=[*PROMPTS, "word " * 40])
    trained(recipe, tmp_path, "run", lambda event, control: notices.append(str(getattr(event, "text", ""))))
    assert any("1 row is left out: its prompt has" in notice and "max_length (20)" in notice for notice in notices)


def test_answers_that_never_end_are_cut_counted_and_may_be_left_out(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "max_steps=1", max_completion_length=2, mask_truncated_completions=True)
    _, history = trained(recipe, tmp_path, "run")
    assert history.steps[0].metrics["completions/clipped_ratio"] == 1
    assert history.steps[0].loss == 0 and history.steps[0].grad_norm == 0


def test_a_reward_that_fails_ends_the_run_with_its_sentence(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, rewards=[{"name": "exact_match"}])
    with pytest.raises(RewardFailed, match=r"The reward exact_match needs the column answer, which the row lacks"):
        trained(recipe, tmp_path, "run")


def test_advantages_are_measured_in_the_group() -> None:
    rewards = [1.0, 0.0, 0.0, 1.0, 5.0, 5.0, 5.0, 5.0]
    grouped = advantages(rewards, 4, "group")
    assert np.allclose(grouped[:4], np.array([1, -1, -1, 1]) * 0.5 / (np.std([1, 0, 0, 1], ddof=1) + 1e-4))
    assert (grouped[4:] == 0).all() and np.allclose(advantages(rewards, 4, "none")[:4], [0.5, -0.5, -0.5, 0.5])
    assert np.allclose(advantages(rewards, 4, "batch")[0], 0.5 / (np.std(rewards, ddof=1) + 1e-4))


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo", "cispo", "sapo"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_loss_is_that_of_trl(loss_type: str, level: str, tmp_path: Path) -> None:
    """TRL's own `_compute_loss` on the same log-probabilities, in one pass of padded answers."""
    options = {"loss_type": loss_type, "importance_sampling_level": level, "beta": 0.05, "epsilon_high": 0.3}
    section = GRPO.model_validate({"name": "grpo", "max_completion_length": 7, **options})
    generator = torch.Generator().manual_seed(0)
    lengths, width = [3, 7, 5], 7
    logprobs, old, reference = (-torch.rand(3, width, generator=generator) for _ in range(3))
    gains = torch.tensor([1.2, -0.7, 0.3])
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    leaf = logprobs.clone().requires_grad_()
    expected = trl_loss(section, leaf, old, reference, gains, mask)
    expected.backward()
    flat = logprobs[mask].clone().requires_grad_()
    weights = torch.tensor(token_weights(section, lengths, [True] * 3))
    loss, _ = policy_loss(section, Tokens(lengths, flat, old[mask], reference[mask], gains, weights))
    loss.backward()
    assert flat.grad is not None and leaf.grad is not None
    assert torch.allclose(loss, expected, atol=1e-6) and torch.allclose(flat.grad, leaf.grad[mask], atol=1e-6)


def keep(value: Any, reduction: str = "") -> Any:
    """What one process gathers from all."""
    return value


def trl_loss(
    section: GRPO, logprobs: Any, old: Any, reference: Any, gains: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    assert section.epsilon_high is not None
    from types import SimpleNamespace
    from unittest.mock import MagicMock

    from trl import GRPOTrainer

    trainer = MagicMock(spec=GRPOTrainer)
    trainer._get_per_token_logps_and_entropies.return_value = (logprobs, torch.zeros_like(logprobs), None)
    trainer.args = SimpleNamespace(
        use_bias_correction_kl=False, delta=None, sapo_temperature_pos=1.0, sapo_temperature_neg=1.05,
        steps_per_generation=1,
    )  # fmt: skip
    trainer.accelerator = SimpleNamespace(num_processes=1, gather=keep, reduce=keep, gather_for_metrics=keep)
    trainer.model = SimpleNamespace(training=True)
    trainer._metrics = {"train": MagicMock()}
    settings = {
        "aux_loss_enabled": False, "top_entropy_quantile": 1.0, "off_policy_mask_threshold": None, "beta": section.beta,
        "importance_sampling_level": section.importance_sampling_level, "loss_type": section.loss_type,
        "epsilon_low": section.epsilon, "use_vllm": False,
        # TRL takes it as the ratio itself for this loss alone.
        "epsilon_high": section.epsilon_high + (section.loss_type == "cispo"),
        "current_gradient_accumulation_steps": 1, "_entropy_bonus_enabled": False,
        "max_completion_length": section.max_completion_length,
    }  # fmt: skip
    for name, value in settings.items():
        setattr(trainer, name, value)
    inputs = {
        "prompt_ids": torch.zeros(3, 1, dtype=torch.long), "prompt_mask": torch.ones(3, 1, dtype=torch.long),
        "completion_ids": torch.zeros_like(mask, dtype=torch.long), "completion_mask": mask.long(),
        "advantages": gains, "old_per_token_logps": old, "ref_per_token_logps": reference,
        "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    loss: torch.Tensor = GRPOTrainer._compute_loss(trainer, MagicMock(), inputs)
    return loss


def test_the_estimate_counts_the_cache_of_the_answers_and_steps_of_prompts(tmp_path: Path) -> None:
    from tuitune.plan.estimate import estimate

    estimated = estimate(recipe_of(tmp_path, "max_steps=-1", "num_train_epochs=2"))
    assert estimated.steps == 2 * (len(PROMPTS) // 2)
    columns = estimated.longest_batch_tokens // 4  # of one answer with its prompt
    layers, key_value, fp32 = 5, 4 * 32, 4
    assert columns > 12 and estimated.memory.rollouts_bytes == 2 * layers * key_value * fp32 * columns * 8


@pytest.mark.parametrize("iterations", [1, 2])
def test_a_run_that_is_resumed_is_the_same_bit_for_bit(iterations: int, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, num_iterations=iterations, beta=0.05)
    whole, history = trained(recipe, tmp_path, "whole")

    def stop(event: Event, control: Control) -> None:
        if isinstance(event, Step) and event.step == 1:
            control.stop.set()

    run, _ = trained(recipe, tmp_path, "stopped", stop)
    assert run.history().step == iterations, "it stops at the end of a generation"
    writer, emitted = RunWriter(run), []

    def emit(event: Event) -> None:
        emitted.append(event)
        writer.append(event)

    train(recipe, run, Control(), emit, resumed=resumption_of(run, emit))
    writer.close()
    ours, theirs = adapter(run.adapter), adapter(whole.adapter)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    losses = {step.step: step.loss for step in history.steps}
    assert [step.loss for step in run.history().steps] == [losses[step] for step in range(1, 5)]


def test_the_audit_asks_for_what_rewards_compare_with_and_for_no_replies(tmp_path: Path) -> None:
    from tuitune.audit.scan import audit

    recipe = recipe_of(tmp_path, rewards=[{"name": "exact_match", "column": "right"}])
    rows = [{"prompt": "Name an animal.", "right": "cow"}, {"prompt": "Say an animal.", "right": ""}]
    Path(recipe.data.path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = audit(recipe)
    texts = {finding.text: [example.row for example in finding.examples] for finding in report.findings}
    assert texts == {
        "the column right, which the reward exact_match compares with, is empty or missing: fill it in": [2]
    }


def test_a_model_without_probabilities_is_told_in_one_sentence(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, f"model.name={without_probabilities(tmp_path)}")
    with pytest.raises(TuituneError) as failed:
        trained(recipe, tmp_path, "run")
    assert "NaN" in str(failed.value) and str(failed.value).endswith(".")
