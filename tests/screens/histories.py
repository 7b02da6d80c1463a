"""Runs told by fixed events, so that a screen drawn from them looks the same each time."""

import dataclasses
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tuitune.recipe import Recipe
from tuitune.runs.events import (
    Checkpoint,
    Evaluation,
    Event,
    Failed,
    Finished,
    Notice,
    Phase,
    Plan,
    Reply,
    Sample,
    Started,
    Step,
)
from tuitune.runs.folder import Run, create_run
from tuitune.runs.history import History

AT = 1_900_000_000.0
NOW = AT + 95
GIB = 2**30


def write(events: Iterator[Event], recipe: Recipe, runs_folder: Path, name: str) -> Run:
    """The folder of a run that these events tell of, last changed when the last of them happened."""
    writer = create_run(recipe, runs_folder, name)
    for event in events:
        writer.append(event)
    writer.close()
    os.utime(writer.run.events_file, (writer.run.history().last_at,) * 2)
    return writer.run


def loading(at: float = AT) -> Iterator[Event]:
    """A run that has read its data and is loading its model."""
    yield Started(at=at, run="pirate-1", attempt=1, pid=4242)
    yield Phase(at=at + 1, name="data", text="Tokenising 350 rows", done=350, total=350)
    yield Phase(at=at + 3, name="model", text="Loading weights", done=120, total=290)


def training(steps: int = 40, total: int = 60, at: float = AT) -> Iterator[Event]:
    """A run in the middle of its training, with everything a dashboard can show."""
    yield from loading(at)
    yield Plan(
        at=at + 5,
        backend="transformers",
        device="NVIDIA RTX 4090",
        rows=332,
        eval_rows=18,
        dropped_rows=2,
        tokens=104_000,
        trained_tokens=41_000,
        trainable_parameters=11_272_192,
        total_parameters=1_247_000_000,
        total_steps=total,
    )
    yield Notice(at=at + 5, text="2 of 352 rows are longer than max_length and were cut.")
    yield Reply(at=at + 6, step=0, prompt="What is two plus three?", reply="Two plus three is five.")
    yield Evaluation(at=at + 7, attempt=1, step=0, loss=3.1)
    yield Phase(at=at + 8, name="training", text="Training; the first step takes the longest")
    for step in range(1, steps + 1):
        wobble = 0.35 * math.sin(step * 1.7) * math.exp(-step / 40)
        yield Step(
            at=at + 10 + 2.0 * step,
            attempt=1,
            step=step,
            total_steps=total,
            epoch=step / 41,
            loss=0.4 + 2.6 * math.exp(-step / 14) + wobble,
            grad_norm=1.5 + math.cos(step),
            learning_rate=2e-4 * min(1.0, step / 5) * (1 - step / (total + 10)),
            tokens=2_000,
            tokens_per_second=1_200 + 5.0 * step,
        )
        if step % 20 == 0:
            yield Evaluation(at=at + 10 + 2.0 * step, attempt=1, step=step, loss=0.5 + 2.6 * math.exp(-step / 14))
            yield Checkpoint(at=at + 10 + 2.0 * step, attempt=1, step=step, path=f"checkpoints/checkpoint-{step}")
    yield Sample(
        at=at + 10 + 2.0 * steps + 1,
        process_bytes=3 * GIB,
        host_used_bytes=21 * GIB,
        host_total_bytes=64 * GIB,
        disk_free_bytes=12 * GIB,
        cpu_percent=104.0,
        gpu_index=0,
        gpu_used_bytes=10 * GIB,
        gpu_total_bytes=24 * GIB,
        gpu_process_bytes=9 * GIB,
        gpu_percent=97.0,
        gpu_celsius=61.0,
        gpu_watts=340.0,
    )


def overfitting(at: float = AT) -> Iterator[Event]:
    """A run that learns its rows by heart since step 20, on a card that another process uses."""
    losses = iter((1.31, 0.94, 1.02, 1.13))
    for event in training(at=at):
        if isinstance(event, Sample):
            held: dict[str, Any] = {"gpu_others_bytes": 6 * GIB, "gpu_used_bytes": 15 * GIB}
            yield from (dataclasses.replace(event, at=event.at - 20 + second, **held) for second in range(21))
        elif not isinstance(event, Evaluation) or event.step == 0:
            yield event
        if isinstance(event, Step) and event.step % 10 == 0:
            yield Evaluation(at=event.at, attempt=1, step=event.step, loss=next(losses))


def finished(at: float = AT) -> Iterator[Event]:
    yield from training(60, 60, at)
    yield Reply(at=at + 140, step=60, prompt="What is two plus three?", reply="Arr! Two plus three be five, matey!")
    yield Finished(at=at + 141, status="done", step=60, seconds=141.0, adapter="adapter")


def failed(at: float = AT) -> Iterator[Event]:
    yield from loading(at)
    yield Failed(
        at=at + 9,
        message="The GPU ran out of memory: halve train.per_device_train_batch_size and double "
        "train.gradient_accumulation_steps, or lower data.max_length.",
    )


def slower(events: Iterator[Event]) -> Iterator[Event]:
    """The same run, which has learnt less at each moment."""
    for event in events:
        if isinstance(event, Step | Evaluation):
            yield dataclasses.replace(event, loss=event.loss + 0.5)
        else:
            yield event


def of(events: Iterator[Event]) -> History:
    return History.of(events)


def of_pairs(steps: int = 12) -> Iterator[Event]:
    """A run that learns from pairs, with the figures that it logs."""
    for event in training(steps, total=steps):
        if isinstance(event, Plan):
            event = dataclasses.replace(event, method="dpo")  # noqa: PLW2901
        if isinstance(event, Step):
            margin = 0.05 * event.step
            figures = {"rewards/margins": margin, "rewards/accuracies": 0.875, "rewards/chosen": -0.1, "kl": math.nan}
            event = dataclasses.replace(event, metrics=figures)  # noqa: PLW2901
        yield event
