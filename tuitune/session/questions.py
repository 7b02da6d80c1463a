"""What a recipe and its data are asked before a run: the jobs of a session that keep nothing between them."""

import dataclasses
from pathlib import Path

from tuitune.recipe import Recipe
from tuitune.runs.folder import default_runs_folder
from tuitune.session.worker import Job, Result


def summary(job: Job, recipe: Recipe) -> Result:
    from tuitune.data.inspect import summary

    return summary(recipe)


def rows(job: Job, recipe: Recipe, start: int, stop: int, source: int = 0) -> Result:
    from tuitune.data.inspect import inspect_rows

    return {"rows": list(inspect_rows(recipe, start, stop, source))}


def unusable(job: Job, recipe: Recipe, among: int) -> Result:
    from tuitune.data.inspect import unusable_rows

    return unusable_rows(recipe, among)


def audit(job: Job, recipe: Recipe) -> Result:
    """Every problem in the data; parts of the answer tell how many rows are done."""
    from tuitune.audit.scan import audit

    report = audit(
        recipe,
        progress=lambda done, total: job.part(done=done, total=total),
        cancelled=job.cancelled.is_set,
    )
    job.check()
    return report.as_dict()


def columns(job: Job, recipe: Recipe) -> Result:
    """The names in the first rows with a value of each, and what they may be mapped to."""
    from tuitune.data.inspect import columns

    return columns(recipe)


def search_datasets(job: Job, words: str) -> Result:
    """Datasets of the Hub: `datasets`, each with name, gated and downloads."""
    from tuitune.hub.datasets import search_datasets

    return {"datasets": [dataclasses.asdict(dataset) for dataset in search_datasets(words)]}


def dataset_splits(job: Job, name: str, revision: str = "") -> Result:
    """`configs`: each configuration of a Hub dataset to its splits."""
    from tuitune.hub.datasets import dataset_splits

    return {"configs": dataset_splits(name, revision)}


def estimate(job: Job, recipe: Recipe, runs: str | None = None) -> Result:
    from tuitune.export.needs import preflight, wanted_kinds
    from tuitune.plan.estimate import estimate

    runs_folder = Path(runs) if runs else default_runs_folder()
    kinds = wanted_kinds(recipe)
    wanted = [dataclasses.asdict(kind) for kind in preflight(recipe, runs_folder, kinds)] if kinds else []
    return {**estimate(recipe, runs_folder=runs_folder).as_dict(), "exports": wanted}
