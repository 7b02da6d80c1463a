"""A small Hugging Face Hub on 127.0.0.1: folders as repositories, in the part of the API that the libraries speak."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.engine.hub_wire import HubHandler, served


@dataclass
class Hub:
    """`repositories`: `datasets/owner/name` or `models/owner/name` to revision to folder, whose name makes its commit,
    so that a branch moves on when it is given another one; `gated`: those that need a
    token; `forbidden`: those that no token may read, `datasets` or `models` for searching them. `asked` collects the
    paths of all requests.
    """

    endpoint: str = ""
    repositories: dict[str, dict[str, Path]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    forbidden: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)

    def environment(self, home: Path) -> dict[str, str]:
        """What a process needs to take this for the Hub, with a cache and no token of its own."""
        return {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A server on a free port, for as long as the block runs."""
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    with served(Handler) as hub.endpoint:
        yield hub


def commit(repository: str, folder: str) -> str:
    """The commit of a repository that this folder holds."""
    return hashlib.sha1(f"{repository}@{folder}".encode()).hexdigest()


class _Refused(Exception):
    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status = status


class _Handler(HubHandler):
    hub: Hub

    def answer(self) -> None:
        body = self.body().decode()
        address = urlsplit(self.path)
        path = unquote(address.path).strip("/")
        self.hub.asked.append(path)
        try:
            if path.startswith("api/"):
                self._api(path.removeprefix("api/").split("/"), parse_qs(address.query) | parse_qs(body))
            else:
                self._resolve(path.split("/"))
        except _Refused as refused:
            self.send_json(refused.status, {"error": str(refused)}, {"X-Error-Code": str(refused)})

    def _api(self, parts: list[str], form: dict[str, list[str]]) -> None:
        if parts in (["datasets"], ["models"]):
            self._list(parts[0], form)
            return
        if parts[0] not in ("models", "datasets") or len(parts) < 3:
            raise _Refused(404, "NotFound")
        repository, rest = "/".join(parts[:3]), parts[3:]
        revision = rest[1] if rest[:1] in (["revision"], ["tree"], ["paths-info"]) else "main"
        folder, sha = self._folder(repository, revision, metadata=rest[:1] not in (["tree"], ["auth-check"]))
        if rest[:1] == ["tree"]:
            under = folder.joinpath(*rest[2:])
            if not under.is_dir():
                raise _Refused(404, "EntryNotFound")
            deep = form.get("recursive", ["false"])[0].lower() == "true"
            answer: Any = [_entry(folder, path) for path in sorted(under.rglob("*") if deep else under.iterdir())]
        elif rest[:1] == ["paths-info"]:
            wanted = [folder / path for path in form.get("paths", [])]
            answer = [_entry(folder, path) for path in wanted if path.exists()]
        else:
            answer = {
                "id": "/".join(parts[1:3]),
                "sha": sha,
                "private": False,
                "gated": repository in self.hub.gated and "manual",
                "tags": [],
                "siblings": [
                    {"rfilename": str(path.relative_to(folder))} for path in folder.rglob("*") if path.is_file()
                ],
            }
        if rest == ["auth-check"]:
            answer = {}
        self.send_json(200, answer, {"X-Repo-Commit": sha})

    def _list(self, kind: str, form: dict[str, list[str]]) -> None:
        if kind in self.hub.forbidden:
            raise _Refused(403, "Forbidden")
        words = form.get("search", [""])[0].lower()
        names = [name.removeprefix(f"{kind}/") for name in self.hub.repositories if name.startswith(f"{kind}/")]
        listed: list[dict[str, Any]] = [
            {"id": name, "gated": f"{kind}/{name}" in self.hub.gated and "manual", "downloads": 1000, "tags": []}
            for name in names
            if words in name.lower()
        ]
        self.send_json(200, listed)

    def _resolve(self, parts: list[str]) -> None:
        if parts[0] != "datasets":
            parts = ["models", *parts]
        if len(parts) < 6 or parts[3] != "resolve":
            raise _Refused(404, "NotFound")
        repository = "/".join(parts[:3])
        folder, sha = self._folder(repository, parts[4])
        file = folder.joinpath(*parts[5:])
        if not file.is_file():
            raise _Refused(404, "EntryNotFound")
        raw = file.read_bytes()
        self.send(200, raw, {"ETag": f'"{_oid(file)}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"})

    def _folder(self, repository: str, revision: str, *, metadata: bool = False) -> tuple[Path, str]:
        revisions = self.hub.repositories.get(repository)
        if revisions is None:
            # As the Hub answers, which does not tell a stranger what exists.
            raise _Refused(401 if "Authorization" not in self.headers else 404, "RepoNotFound")
        if repository in self.hub.forbidden:
            raise _Refused(403, "Forbidden")
        if repository in self.hub.gated and "Authorization" not in self.headers and not metadata:
            raise _Refused(401, "GatedRepo")
        for name, folder in revisions.items():
            if revision in (name, commit(repository, folder.name)):
                return folder, commit(repository, folder.name)
        raise _Refused(404, "RevisionNotFound")


def _oid(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


def _entry(folder: Path, path: Path) -> dict[str, Any]:
    name = str(path.relative_to(folder))
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 0}
    return {"type": "file", "path": name, "oid": _oid(path), "size": path.stat().st_size}
