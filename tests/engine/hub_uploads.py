"""The tests' Hub, in the part of the API that uploads speak: who a token is, new repositories, large files, commits."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.engine.hub_wire import HubHandler, served


@dataclass
class UploadHub:
    """`files`: repository to path to content; `role` of the one token `hf_good`; `break_after` that many commits the
    connection is closed without an answer. `log` collects method and path of every request; while `answers` is not set,
    requests wait."""

    endpoint: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    role: str = "write"
    break_after: int | None = None
    commits: int = 0
    log: list[str] = field(default_factory=list)
    answers: Event = field(default_factory=Event)

    def __post_init__(self) -> None:
        self.answers.set()

    def asked(self) -> int:
        """How often it was asked whose a token is."""
        return self.log.count("GET api/whoami-v2")


@contextmanager
def upload_hub() -> Iterator[UploadHub]:
    """A server on a free port, for as long as the block runs."""
    hub = UploadHub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    with served(Handler) as hub.endpoint:
        try:
            yield hub
        finally:
            hub.answers.set()


class _Handler(HubHandler):
    hub: UploadHub

    def answer(self) -> None:
        body, path = self.body(), unquote(urlsplit(self.path).path).strip("/")
        self.hub.log.append(f"{self.command} {path}")
        self.hub.answers.wait()
        parts = path.split("/")
        if parts[0] == "large":
            self.hub.large[parts[1]] = body
            self.send_json(200, {})
            return
        if self.headers.get("Authorization") not in ("Bearer hf_good", None):
            self.send_json(401, {"error": "Invalid credentials"})
            return
        if path == "api/whoami-v2":
            token = {"accessToken": {"role": self.hub.role, "displayName": "test"}}
            self.send_json(200, {"name": "ada", "type": "user", "orgs": [{"name": "crew"}], "auth": token})
        elif path == "api/validate-yaml":
            self.send_json(200, {"errors": [], "warnings": []})
        elif path == "api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted.get('organization') or 'ada'}/{wanted['name']}"
            self.hub.files.setdefault(name, {})
            private = wanted.get("private", wanted.get("visibility") == "private")
            self.hub.private[name] = bool(private)
            self.send_json(200, {"url": f"{self.hub.endpoint}/{name}"})
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**wanted, "actions": {"upload": {"href": f"{self.hub.endpoint}/large/{wanted['oid']}"}}}
                for wanted in json.loads(body)["objects"]
                if wanted["oid"] not in self.hub.large
            ]
            self.send_json(200, {"transfer": "basic", "objects": objects})
        elif parts[:2] == ["api", "models"] and len(parts) >= 4:
            self._repository("/".join(parts[2:4]), parts[4:], body)
        else:
            self.send_json(404, {"error": "no such path"})

    def _repository(self, name: str, rest: list[str], body: bytes) -> None:
        files = self.hub.files.get(name)
        if files is None:
            self.send_json(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif rest[:1] == ["preupload"]:
            wanted = json.loads(body)["files"]
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".gguf")) else "regular",
                    "shouldIgnore": False,
                }
                for file in wanted
            ]
            self.send_json(200, {"files": modes})
        elif rest[:1] == ["commit"]:
            if self.hub.break_after is not None and self.hub.commits >= self.hub.break_after:
                self.close_connection = True
                return
            self.hub.commits += 1
            for line in body.splitlines():
                change = json.loads(line)
                value = change["value"]
                if change["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif change["key"] == "lfsFile":
                    files[value["path"]] = self.hub.large[value["oid"]]
            oid = f"{self.hub.commits:040x}"
            self.send_json(
                200, {"commitUrl": f"{self.hub.endpoint}/{name}/commit/{oid}", "commitOid": oid, "success": True}
            )
        elif rest[:1] == ["tree"]:
            self.send_json(200, [_entry(path, content) for path, content in sorted(files.items())])
        else:
            siblings = [{"rfilename": path} for path in files]
            about = {"id": name, "sha": "0" * 40, "private": True, "tags": [], "siblings": siblings}
            self.send_json(200, about)


def _entry(path: str, content: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": path, "oid": blob, "size": len(content)}
    if path.endswith((".safetensors", ".gguf")):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry
