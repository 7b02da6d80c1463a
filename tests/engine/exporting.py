"""What the export tests share: an export of which each kind must be made."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.adapters import draw_adapter
from tests.conftest import DEMO
from tuitune import export as engine
from tuitune.errors import TuituneError
from tuitune.export import Exported, ExportOptions, llama_cpp
from tuitune.recipe import Recipe
from tuitune.runs.folder import Run, create_run


def yes(question: str) -> bool:
    return True


def never() -> bool:
    return False


def quiet(kind: str, text: str, done: int | None, total: int | None) -> None:
    pass


def require_converter() -> None:
    """Skip the test where llama.cpp's converter neither is here nor can be downloaded."""
    if llama_cpp.find() is None:
        try:
            llama_cpp.obtain(yes, lambda done, total: None, never)
        except TuituneError as error:
            pytest.skip(str(error))


def moved_run(runs: Path) -> Run:
    """A run of the demo model, kept in the folder `runs`, whose adapter moves every prediction a little."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    recipe = {"model": {"name": str(DEMO / "demo_model")}, "data": {"path": str(DEMO / "pirate.jsonl")}}
    writer = create_run(Recipe.from_data(recipe), runs, "moved")
    writer.close()
    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(DEMO / "demo_model", dtype=torch.float32),
        LoraConfig(r=4, lora_alpha=8, target_modules=["v_proj", "down_proj"], task_type="CAUSAL_LM"),
    )
    draw_adapter(model, std=0.03)
    model.save_pretrained(writer.run.adapter)
    AutoTokenizer.from_pretrained(DEMO / "demo_model").save_pretrained(writer.run.adapter)
    return writer.run


def export(
    run: Run,
    kinds: list[str],
    out: Path | None,
    progress: engine.Progress,
    allow_download: Callable[[str], bool],
    cancelled: Callable[[], bool],
    options: ExportOptions = ExportOptions(),  # noqa: B008 - it cannot be changed
) -> list[Exported]:
    """Everything asked for, in the order of KINDS. Raises the error of the first kind that could not be made."""
    exports = []
    for result in engine.export(run, kinds, out, progress, allow_download, cancelled, options):
        if not isinstance(result, Exported):
            raise result.error
        exports.append(result)
    return exports
