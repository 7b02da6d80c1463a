"""Exports on plain output."""

import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tuitune.commands.output import complain, print_json, quiet_stdout
from tuitune.commands.status import DONE, FAILED
from tuitune.runs.folder import Run
from tuitune.session.client import Session
from tuitune.session.result_requests import Export
from tuitune.text import safe_text
from tuitune.units import size


def check_exports(
    run: Run, kinds: list[str], out: Path | None, *, checkpoint: str | None, hub_repo: str | None, as_json: bool
) -> int:
    """Say of each kind what making it takes, or why it cannot be made; FAILED where one that was named cannot."""
    from tuitune.export import KINDS, require_known
    from tuitune.export.needs import preflight_with_hub
    from tuitune.train.checkpoints import adapter_of

    chosen = require_known(kinds) if kinds else [kind for kind in KINDS if hub_repo or not kind.of]
    with quiet_stdout():
        readinesses = preflight_with_hub(adapter_of(run, checkpoint), hub_repo, out, chosen)
    if as_json:
        print_json({"kinds": [asdict(readiness) for readiness in readinesses]})
    for readiness in [] if as_json else readinesses:
        taken = f" ({size(readiness.bytes)})" if readiness.bytes else ""
        print(safe_text(f"{readiness.in_words()}{taken}"))
    return FAILED if kinds and any(readiness.missing for readiness in readinesses) else DONE


def export_run(
    run: Run,
    kinds: list[str],
    out: Path | None,
    *,
    checkpoint: str | None,
    allow_download: bool,
    hub_repo: str | None,
    hub_public: bool,
    tar: bool,
    split_bytes: int,
    imatrix: bool,
    as_json: bool,
) -> int:
    """Export a run in every kind asked for and say where each lies; FAILED where one could not be made."""
    from tuitune.export import llama_cpp, require_known
    from tuitune.hub.upload import require_writable

    chosen = require_known(kinds)
    if any(kind.of for kind in chosen):  # before the long work, and before a session is started
        require_writable(hub_repo)
    needed = any(kind.gguf or kind.form == "adapter_gguf" for kind in chosen) and llama_cpp.find() is None
    if needed and not allow_download and sys.stdin.isatty() and not as_json:
        allow_download = input(f"{llama_cpp.download_question()} [y/N] ").strip().lower() in ("y", "yes")
    request = Export(
        str(run.folder),
        kinds,
        str(out) if out else None,
        allow_download,
        checkpoint,
        hub_repo,
        hub_public,
        tar,
        split_bytes,
        imatrix,
    )
    return asyncio.run(_export(request, as_json))


async def _export(request: Export, as_json: bool) -> int:
    session = await Session.start()
    seen: set[tuple[str, str]] = set()
    exports: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []

    def show(part: dict[str, Any]) -> None:
        if "exported" in part:
            exports.append(part["exported"])
            if not as_json:
                _print_exported(part["exported"])
        elif "failed" in part:
            failed.append(part["failed"])
            complain(f"{part['failed']['kind']}: {part['failed']['error']}")
        elif not as_json and (key := (str(part.get("kind")), str(part.get("text")))) not in seen:
            seen.add(key)
            print(safe_text(": ".join(key)), flush=True)

    try:
        await session.call(request, show)
    finally:
        if as_json and (exports or failed):  # what was finished before the rest was stopped or lost, too
            print(json.dumps({"exports": exports, "failed": failed}), flush=True)
        await session.close()
    return FAILED if failed else DONE


def _print_exported(export: dict[str, Any]) -> None:
    lines = [f"\n{export['kind']}: {safe_text(export['path'])} ({export['bytes'] / 10**6:,.1f} MB)"]
    lines += [f"  ✔ {safe_text(export['proof'])}"] if export.get("proof") else []
    lines += [f"  ! {safe_text(notice)}" for notice in export["notices"]]
    lines += [f"  {safe_text(command['what'])}:\n    {safe_text(command['line'])}" for command in export["commands"]]
    print("\n".join(lines), end="\n\n", flush=True)
