"""What the doctor's probes say of the libraries, kept from one test to the next."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from tuitune.atomic import write_atomic
from tuitune.machine import doctor


class Probes:
    """The probes, which import torch for seconds: asked once for each PYTHONPATH."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._probe = doctor._probe

    def ask(self, code: str, *arguments: str) -> dict[str, Any]:
        words = "\0".join([os.environ.get("PYTHONPATH", ""), code, *arguments])
        file = self._folder / hashlib.sha256(words.encode(errors="surrogateescape")).hexdigest()
        if not file.is_file():
            write_atomic(file, json.dumps(self._probe(code, *arguments)), lasting=False)
        report: dict[str, Any] = json.loads(file.read_text())
        return report
