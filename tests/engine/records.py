"""Run folders with records written by hand."""

import os
from pathlib import Path

from tuitune.recipe import Recipe
from tuitune.runs.events import Event, Plan, Sample, Step
from tuitune.runs.folder import Run, create_run


def recipe(model: str, **train: float) -> Recipe:
    return Recipe.from_data({"model": {"name": model}, "data": {"path": "/data/pirate.jsonl"}, "train": train})


def plan(device: str = "NVIDIA H200") -> Plan:
    return Plan(
        backend="unsloth", device=device, rows=332, eval_rows=0, dropped_rows=0, tokens=104_000, trained_tokens=41_000,
        trainable_parameters=11_272_192, total_parameters=1_247_000_000, total_steps=60,
    )  # fmt: skip


def steps(*speeds: float | None) -> list[Event]:
    return [
        Step(attempt=1, step=number, total_steps=60, epoch=0.1, loss=1.0, tokens=2_000, tokens_per_second=speed)
        for number, speed in enumerate(speeds, start=1)
    ]


def run(runs_folder: Path, name: str, model: str, at: float, *events: Event) -> Run:
    """A run folder whose record was last written at `at`."""
    writer = create_run(recipe(model), runs_folder, name)
    for event in events:
        writer.append(event)
    writer.close()
    os.utime(writer.run.events_file, (at, at))
    return writer.run


def slow(*events: Event) -> list[Event]:
    """Each event followed by ten minutes of samples of the machine, one a second."""
    sample = Sample(
        process_bytes=8 * 2**30, host_used_bytes=2**37, host_total_bytes=2**40, disk_free_bytes=2**40, cpu_percent=12.5,
        gpu_index=0, gpu_used_bytes=2**36, gpu_total_bytes=2**37, gpu_process_bytes=2**36, gpu_percent=99.0,
        gpu_celsius=70.0, gpu_watts=600.0,
    )  # fmt: skip
    return [record for event in events for record in (event, *[sample] * 600)]
