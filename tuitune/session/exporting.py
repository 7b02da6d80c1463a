"""The jobs that make a run's exports, and say beforehand what can be made."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuitune.errors import explain
from tuitune.runs.folder import Run
from tuitune.session.worker import Job, Result
from tuitune.train.checkpoints import adapter_of

if TYPE_CHECKING:
    from tuitune.export import Exported


def export(
    job: Job,
    run: Run,
    kinds: list[str],
    out: str | None = None,
    allow_download: bool = False,
    checkpoint: str | None = None,
    hub_repo: str | None = None,
    hub_public: bool = False,
    tar: bool = False,
    split_bytes: int = 0,
    imatrix: bool = False,
) -> Result:
    """Every kind as a part of its own when it is there: `exported`, or `failed` with its `error`.

    Other parts are the progress: `kind`, `text`, `done` of `total`.
    """
    from tuitune.export import Exported, ExportOptions, export

    for outcome in export(
        adapter_of(run, checkpoint),
        kinds,
        Path(out) if out else None,
        progress=lambda kind, text, done, total: job.part(kind=kind, text=text, done=done, total=total),
        allow_download=lambda question: allow_download,
        cancelled=job.cancelled.is_set,
        options=ExportOptions(hub_repo, hub_public, tar, split_bytes, imatrix),
    ):
        if isinstance(outcome, Exported):
            job.part(exported=_as_data(outcome))
        else:
            error = outcome.error
            job.part(failed={"kind": outcome.kind, "error": explain(error), "code": error.code})
    return {}


def preflight(job: Job, run: Run, checkpoint: str | None = None, hub_repo: str | None = None) -> Result:
    """`kinds`: what can be made; `exports`: what lies in the run's own folder already."""
    from tuitune.export import exports_of
    from tuitune.export.needs import preflight_with_hub

    run = adapter_of(run, checkpoint)
    return {
        "kinds": [dataclasses.asdict(kind) for kind in preflight_with_hub(run, hub_repo)],
        "exports": [_as_data(exported) for exported in exports_of(run)],
    }


def _as_data(exported: "Exported") -> dict[str, Any]:
    return {**dataclasses.asdict(exported), "path": str(exported.path)}
