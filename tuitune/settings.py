"""What the user likes, kept between sessions in the platform's config folder, and nowhere else."""

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tuitune.atomic import write_atomic
from tuitune.typed import checked, field_types


def settings_file() -> Path:
    from platformdirs import user_config_path

    return user_config_path("tuitune") / "settings.json"


@dataclass
class Settings:
    """Preferences; a file that is missing, unreadable or wrong gives the defaults, and never an error.

    Addresses and tokens are secrets. The file can be read by this user alone.
    """

    folded: bool = False
    """The explanations are folded away."""
    theme: str = "textual-dark"
    """The colour theme's name."""
    language: str = ""
    """In which everything is shown; empty: the one that the environment asks for."""
    ascii: bool = False
    """Draw with ASCII characters only."""
    reduced_motion: bool = False
    """Animate nothing."""
    notifications: bool = True
    """Ring, and notify, when a run has ended."""
    price: str = ""
    """What this machine costs an hour, as `tuitune.runs.cost.Price.parse` reads it; empty where it is not known."""
    webhook: str = field(default="", repr=False)
    """The address that is sent a run's end as JSON."""
    webhook_token: str = field(default="", repr=False)
    """Sent to the webhook as `Authorization: Bearer`."""
    ntfy: str = field(default="", repr=False)
    """The ntfy topic that is sent a run's end: a topic of ntfy.sh, or the whole address."""
    ntfy_token: str = field(default="", repr=False)
    """Sent to ntfy as `Authorization: Bearer`."""
    file: Path | None = field(default=None, compare=False)
    """Where they are kept; None keeps them nowhere."""

    @classmethod
    def load(cls, file: Path) -> "Settings":
        try:
            raw = json.loads(file.read_text())
        except (OSError, ValueError, RecursionError):
            raw = {}
        return cls(**_matching(raw if isinstance(raw, dict) else {}), file=file)

    def save(self) -> None:
        """Keep them; a folder that cannot be written is no reason to disturb the user."""
        if self.file is None:
            return
        fields = {name: value for name, value in asdict(self).items() if name != "file"}
        with suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.file, json.dumps(fields, indent=2))

    def with_environment(self) -> "Settings":
        """These, with addresses and tokens from TUITUNE_WEBHOOK, TUITUNE_NTFY and their _TOKEN where those are set."""
        values = asdict(self)
        for name in ("webhook", "webhook_token", "ntfy", "ntfy_token"):
            values[name] = os.environ.get(f"TUITUNE_{name.upper()}") or values[name]
        return Settings(**values)


def _matching(raw: dict[str, Any]) -> dict[str, Any]:
    """The entries whose name and type are those of a setting."""
    values = {}
    for name, hint in field_types(Settings).items():
        if name != "file" and name in raw:
            with suppress(TypeError, ValueError, OverflowError):
                values[name] = checked(raw[name], hint)
    return values
