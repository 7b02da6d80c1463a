"""Datasets of the Hugging Face Hub: `datasets` says which files make a split, and they are read like any other file."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tuitune.atomic import write_atomic
from tuitune.errors import TuituneError, UnusableInput
from tuitune.hub.reach import explained, refusal, search_explained, unreached
from tuitune.hub.split import split_name
from tuitune.paths import cache_folder, key_of
from tuitune.recipe_sections import HUB, DataSection
from tuitune.text import one_line

_ID = re.compile(r"(?!.*(--|\.\.))[\w-][\w.-]{0,95}(/[\w-][\w.-]{0,95})?", re.ASCII)
_READABLE = ("json", "csv", "parquet", "arrow")
"""Builders of `datasets` whose files hold one row after another."""
_MOST_CONFIGS = 200
"""More configurations than a person looks through."""
_MOST_SIZES = 1000
"""Files whose sizes are asked for."""


@dataclass(frozen=True)
class HubFiles:
    """The files of one split at one commit. `rows` is their number where the dataset's page tells it, `bytes` each
    file's size where the Hub does.
    """

    name: str
    commit: str
    files: tuple[str, ...]
    rows: int | None
    bytes: tuple[int, ...] | None = None

    def paths(self) -> Iterator[Path]:
        """Each file, downloaded when its turn comes. Raises UnusableInput where the Hub does not give it."""
        for file in self.files:
            yield _downloaded(self.name, self.commit, file)


@dataclass(frozen=True)
class FoundDataset:
    """A dataset on the Hub, as its API describes it."""

    name: str
    gated: bool
    downloads: int


def search_datasets(words: str, limit: int = 20) -> list[FoundDataset]:
    """Datasets that the Hub finds, most downloaded first. Raises TuituneError, saying why, where it does not answer."""
    from huggingface_hub import HfApi

    if problem := unreached():
        raise TuituneError(search_explained(problem))
    try:
        datasets = list(HfApi().list_datasets(search=words, sort="downloads", limit=limit))
    except Exception as error:  # httpx and huggingface_hub raise kinds of their own
        raise TuituneError(search_explained(error)) from error
    return [
        FoundDataset(one_line(dataset.id, max_length=120), bool(dataset.gated), dataset.downloads or 0)
        for dataset in datasets
        if _ID.fullmatch(dataset.id)
    ]


def dataset_splits(name: str, revision: str = "") -> dict[str, list[str]]:
    """Splits of each configuration of a Hub dataset, by what its page and files say. Raises UnusableInput."""
    shown = one_line(name, max_length=120)
    if not _ID.fullmatch(name):
        raise UnusableInput("{name!r} is no Hub dataset id: write owner/name.", name=shown)
    if problem := refusal(name, "dataset"):
        raise UnusableInput(explained(problem, name, "dataset", revision)) from None
    import datasets

    datasets.disable_progress_bars()
    address, asked_revision = _address(name), revision or None
    try:
        return {
            config: [str(split) for split in _builder(address, config, asked_revision).config.data_files or {}]
            for config in datasets.get_dataset_config_names(address, revision=asked_revision)[:_MOST_CONFIGS]
        }
    except Exception as error:  # datasets raises a kind for each of its libraries
        raise UnusableInput(explained(error, name, "dataset", revision)) from error


def _address(name: str) -> str:
    """`hf://` keeps `datasets` from taking a local folder, a builder or a script of this name for the dataset."""
    return f"hf://datasets/{name}"


def _builder(address: str, config: str | None, revision: str | None) -> Any:
    import datasets

    return datasets.load_dataset_builder(address, config, revision=revision)


def hub_files(data: DataSection) -> HubFiles:
    """The recipe's Hub dataset: its `config`, `split` and `revision`. Raises UnusableInput, saying what to do."""
    name = data.path.removeprefix(HUB)
    if not _ID.fullmatch(name):
        raise UnusableInput("{name!r} is no Hub dataset id: write hub:owner/name.", name=one_line(name, max_length=120))
    return _list(name, data.config or "", split_name(data.split), data.revision or "")


@cache
def _downloaded(name: str, commit: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, file, repo_type="dataset", revision=commit))
    except Exception as error:  # httpx, huggingface_hub and the file system raise kinds of their own
        raise UnusableInput(explained(error, name, "dataset", commit)) from error


@cache
def _list(name: str, config: str, split: str, revision: str) -> HubFiles:
    """Asked once per process, of a commit only once; the listing from last time where the Hub is not reached.

    Raises UnusableInput.
    """
    remembered = _remembered(name, config, split, revision)
    if remembered is not None and remembered.commit == revision:
        return remembered
    if problem := refusal(name, "dataset"):
        if remembered is not None:
            return remembered
        raise UnusableInput(explained(problem, name, "dataset", revision)) from None
    try:
        listing = _ask(name, config, split, revision)
    except UnusableInput:
        raise
    except Exception as error:  # datasets raises a kind for each of its libraries
        raise UnusableInput(explained(error, name, "dataset", revision)) from error
    with suppress(OSError):  # only to be found without a connection later
        for file in {_listing(name, config, split, version) for version in (revision, listing.commit)}:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(file, json.dumps(asdict(listing)))
    return listing


def _listing(*dataset: str) -> Path:
    """Where the files of a dataset are remembered, to be found without a connection."""
    return cache_folder("hub") / f"{key_of(*dataset)}.json"


def _remembered(name: str, config: str, split: str, revision: str) -> HubFiles | None:
    try:
        fields = json.loads(_listing(name, config, split, revision).read_text())
        sizes = fields.get("bytes")
        return HubFiles(**fields | {"files": tuple(fields["files"]), "bytes": None if sizes is None else tuple(sizes)})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _ask(name: str, config: str, split: str, revision: str) -> HubFiles:
    import datasets

    datasets.disable_progress_bars()
    address = _address(name)
    asked_revision = revision or None
    shown = one_line(name, max_length=120)
    try:
        builder = _builder(address, config or None, asked_revision)
    except ValueError as error:
        if "config" not in str(error).lower():
            raise
        known = one_line(", ".join(datasets.get_dataset_config_names(address, revision=asked_revision)), max_length=300)
        raise UnusableInput(
            "Set data.config to one of the configurations of {name}: {known}.", name=shown, known=known
        ) from None
    kind = type(builder).__module__.rpartition(".")[2]
    if kind not in _READABLE:
        raise UnusableInput(
            "The files of {name} are of the kind {kind}: only JSON, CSV, Parquet and Arrow files hold conversations; "
            "convert them and give one as data.path.",
            name=shown,
            kind=kind,
        )
    splits = builder.config.data_files or {}
    if split not in splits:
        known = one_line(", ".join(map(str, splits)), max_length=300)
        raise UnusableInput(
            "{name} has no split {split}: set data.split to one of {known}.",
            name=shown,
            split=one_line(split, max_length=80),
            known=known,
        )
    prefix = re.compile(rf"hf://datasets/{re.escape(name)}@([0-9a-f]+)/(.+)")
    parts = [prefix.fullmatch(str(file)) for file in splits[split]]
    if not all(parts) or len({match[1] for match in parts if match}) != 1:
        raise UnusableInput(
            "{name} takes files from elsewhere, which is not followed: give a file as data.path.", name=shown
        )
    matches = [match for match in parts if match]
    counted = builder.info.splits or {}
    rows = counted[split].num_examples if split in counted else None
    files, commit = tuple(match[2] for match in matches), matches[0][1]
    return HubFiles(name, commit, files, rows or None, _sizes(name, commit, files))


def _sizes(name: str, commit: str, files: tuple[str, ...]) -> tuple[int, ...] | None:
    """Bytes of each file; None where the Hub does not tell all."""
    from huggingface_hub import HfApi

    try:
        entries = HfApi().get_paths_info(name, list(files[:_MOST_SIZES]), repo_type="dataset", revision=commit)
    except Exception:  # httpx and huggingface_hub raise kinds of their own; nothing but an estimate hangs on it
        return None
    sizes = {entry.path: getattr(entry, "size", None) for entry in entries}
    known = tuple(sizes.get(file) for file in files)
    return None if None in known else known  # type: ignore[return-value]
