"""Export the adapter: the run's own PEFT folder with a model card."""

import json
import shutil
from pathlib import Path
from typing import Any

from tuitune.errors import TuituneError
from tuitune.export.card import mark, model_card
from tuitune.runs.folder import Run
from tuitune.text import one_line


def copy_adapter(run: Run, tokenizer: Any, folder: Path) -> None:
    """Copy the adapter into the new `folder` with the tokenizer and a card, and prove it. Raises TuituneError.

    Only its two files: whatever else lies in the run's folder may be private.
    """
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(run.adapter / name, folder / name)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(model_card(run, "adapter"), encoding="utf-8")
    mark(folder, run, "adapter")
    _prove(folder)


def _prove(folder: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        json.loads((folder / "adapter_config.json").read_text())
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - a safetensors handle is not a dict
                if not file.get_tensor(name).isfinite().all():
                    raise TuituneError(
                        "The adapter's {name} holds NaN or infinity, so it cannot work: train again with a "
                        "lower learning_rate.",
                        name=one_line(name),
                    )
    except (SafetensorError, ValueError) as error:
        raise TuituneError(
            "The adapter cannot be read ({reason}): train again.", reason=one_line(error, max_length=200)
        ) from None
