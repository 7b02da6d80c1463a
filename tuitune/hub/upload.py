"""Upload an export to the Hugging Face Hub: private unless told otherwise, file by file, so that it can go on."""

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tuitune.errors import TuituneError, UnusableInput
from tuitune.language import Sentence, _
from tuitune.text import one_line

ALLOWED = (
    *("*.safetensors", "*.safetensors.index.json", "*.gguf", "README.md", "Modelfile", "parity.json", "*.parity.json"),
    *("config.json", "generation_config.json", "adapter_config.json", "tuitune_export.json", "chat_template.jinja"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "preprocessor_config.json", "processor_config.json"),
)
"""The only names that are ever uploaded."""

_NAME = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]*/)?[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_OURS = "tuitune_export.json"


@dataclass(frozen=True)
class Repository:
    """A repository that may be written to: `owner/name`, whether it is there already, and its address."""

    name: str
    exists: bool
    url: str


@dataclass(frozen=True)
class Uploaded:
    """What was uploaded: the address of the newest commit, and how many files were there already."""

    commit_url: str
    repository: Repository
    skipped: int


def require_writable(name: str | None, api: Any = None) -> Repository:
    """Ask the Hub whether its token may write a repository of this name (`name` or `owner/name`); nothing is made.

    Raises UnusableInput for a name that cannot be used, or is taken by something that tuitune did not upload, and for
    a token that is missing, wrong or may only read; TuituneError where the Hub is not reached.
    """
    if not name:
        raise UnusableInput(
            "A Hub export needs a name for the repository, NAME or OWNER/NAME: give --hub-repo, or export.hub_repo in "
            "the recipe."
        )
    if not _NAME.fullmatch(name) or "--" in name or ".." in name or name.endswith((".git", ".", "-")):
        raise UnusableInput(
            "{name!r} cannot name a Hub repository: take letters, digits, '-', '_' and '.', as NAME or OWNER/NAME.",
            name=one_line(name, max_length=120),
        )
    api = api or _api()
    with _Explained(name):
        account = api.whoami()
    owners = {str(account.get("name")), *(str(owner.get("name")) for owner in account.get("orgs", []))}
    full = name if "/" in name else f"{account['name']}/{name}"
    if full.split("/")[0] not in owners:
        raise UnusableInput(
            "The Hub token belongs to {account}, which cannot write to {name}: choose one of {owners}.",
            account=one_line(account.get("name")),
            name=one_line(full),
            owners=one_line(", ".join(sorted(owners)), max_length=200),
        )
    role = ((account.get("auth") or {}).get("accessToken") or {}).get("role")
    if role == "read":
        raise UnusableInput(
            "The Hub token may only read: make one that may write at huggingface.co/settings/tokens, then run "
            "`hf auth login`."
        )
    with _Explained(full):
        exists = bool(api.repo_exists(full))
        files = set(api.list_repo_files(full)) if exists else set()
    if files - {".gitattributes", "README.md"} and _OURS not in files:
        raise UnusableInput(
            "{name} is taken by something that tuitune did not upload: choose another name, or empty it.",
            name=one_line(full),
        )
    return Repository(full, exists, f"{api.endpoint}/{full}")


def upload(
    files: list[Path],
    name: str | None,
    *,
    public: bool,
    message: str,
    progress: Callable[[str, int, int], None],
    cancelled: Callable[[], bool],
) -> Uploaded:
    """Upload `files` into a repository, one commit a file; what lies there already with the same content is skipped.

    Only names in ALLOWED go, and no links: an export may come from elsewhere. `progress` gets a file's name and bytes
    done of all. Raises UnusableInput, TuituneError; what was uploaded stays, and the next call goes on behind it. The
    mark of an export goes first, so that a repository is known as tuitune's when the rest is missing.
    """
    api = _api()
    repository = require_writable(name, api)
    chosen = [file for file in files if any(fnmatch(file.name, pattern) for pattern in ALLOWED) and file.is_file()]
    if link := next((file for file in chosen if file.is_symlink()), None):
        raise UnusableInput(
            "{file} is a link, and what it leads to may be private: nothing was uploaded. Put the file itself there.",
            file=one_line(link),
        )
    chosen.sort(key=lambda file: (not file.name.endswith(_OURS), file.stat().st_size))
    total, done, skipped = sum(file.stat().st_size for file in chosen), 0, 0
    with _Explained(repository.name):
        if not repository.exists:
            api.create_repo(repository.name, private=not public, exist_ok=True)
        uploaded = {entry.path: entry for entry in api.list_repo_tree(repository.name) if hasattr(entry, "blob_id")}
        commit_url = repository.url
        for file in chosen:
            if cancelled():
                raise TuituneError(
                    "The upload to {name} was stopped: what is there stays, and the next upload goes on behind it.",
                    name=one_line(repository.name),
                )
            target = _OURS if file.name.endswith(_OURS) else file.name
            progress(target, done, total)
            if target in uploaded and _same(file, uploaded[target]):
                skipped += 1
            else:
                commit = api.upload_file(
                    path_or_fileobj=file,
                    path_in_repo=target,
                    repo_id=repository.name,
                    commit_message=f"{message}: {target}",
                )
                commit_url = str(commit.commit_url)
            done += file.stat().st_size
        progress("", total, total)
    return Uploaded(commit_url, repository, skipped)


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(library_name="tuitune")


def _same(file: Path, entry: Any) -> bool:
    """Whether the Hub's file has this content: by SHA-256 where it is a large one, else by git's own hash."""
    if entry.size != file.stat().st_size:
        return False
    if entry.lfs is not None:
        with file.open("rb") as handle:
            return bool(hashlib.file_digest(handle, "sha256").hexdigest() == entry.lfs.sha256)
    raw = file.read_bytes()
    return bool(hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest() == entry.blob_id)


class _Explained:
    """Say in a sentence why the Hub refused."""

    def __init__(self, name: str) -> None:
        self._name = one_line(name, max_length=120)

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, TuituneError) or not isinstance(error, Exception):
            return
        raise TuituneError(_sentence(error, self._name)) from error


def _sentence(error: Exception, name: str) -> Sentence:
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    if isinstance(error, LocalTokenNotFoundError):
        return _("There is no Hub token here: run `hf auth login`, or set HF_TOKEN, with a token that may write.")
    if isinstance(error, OfflineModeIsEnabled):
        return _("HF_HUB_OFFLINE is set, so nothing can be uploaded: unset it.")
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        if status == 401:
            return _("The Hub does not know this token: run `hf auth login` with a valid one that may write.")
        if status == 403:
            return _(
                "The Hub token may not write to {name}: make one that may, or choose a name of your own.", name=name
            )
        if status == 409:
            return _("The name {name} is taken on the Hub: choose another.", name=name)
        return _(
            "The Hub answered with error {status} for {name}: try again, and it goes on where it was.",
            status=status,
            name=name,
        )
    if isinstance(error, httpx.TransportError | ConnectionError | TimeoutError):
        endpoint = one_line(os.environ.get("HF_ENDPOINT") or "https://huggingface.co", max_length=120)
        return _(
            "The connection to the Hub ({address}) was lost: what was uploaded to {name} stays, and exporting again "
            "goes on behind it.",
            address=endpoint,
            name=name,
        )
    reason = one_line(error, max_length=200).rstrip(".")
    return _("The upload to {name} failed ({reason}): try again.", name=name, reason=reason)
