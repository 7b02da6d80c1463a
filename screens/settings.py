"""What the user likes, kept between sessions in the platform's config folder."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from platformdirs import user_config_path


def settings_file() -> Path:
    return user_config_path("tuitune") / "settings.json"


@dataclass
class Settings:
    """Preferences; a file that is missing, unreadable or wrong gives the defaults, and never an error."""

    folded: bool = False
    """The explanations are folded away."""
    theme: str = "textual-dark"
    """The colour theme's name."""
    ascii: bool = False
    """Draw with ASCII characters only."""
    reduced_motion: bool = False
    """Animate nothing."""
    notifications: bool = True
    """Ring, and notify, when a run has ended."""
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
        kept = {name: value for name, value in asdict(self).items() if name != "file"}
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text(json.dumps(kept, indent=2))
        except OSError:
            pass


def _matching(raw: dict[str, Any]) -> dict[str, Any]:
    """The entries whose name and type are those of a setting."""
    defaults = Settings()
    names = [each.name for each in fields(Settings) if each.name != "file"]
    return {name: raw[name] for name in names if type(raw.get(name)) is type(getattr(defaults, name))}
