"""On a GPU: sides that share a base answer as each alone does, and the fast decoder as `generate` does."""

from pathlib import Path

import pytest

from tests.gpu.card import require_card

pytestmark = pytest.mark.gpu
require_card(unsloth=False)

SAMPLE_DATA = Path(__file__).parents[2] / "sample_data"
QUESTIONS = ("What is the capital of France?", "Who are you?", "What is 2 plus 3?")


def test_sides_of_one_base_answer_as_each_alone(tmp_path: Path) -> None:
    from tuitune.machine.environment import warm_up

    warm_up()  # Unsloth before transformers, as in a session
    from tuitune.backends.loaded import LoadedModel
    from tuitune.chat.reply import reply
    from tuitune.chat.sampling import Sampling
    from tuitune.commands.parser import run_command
    from tuitune.runs.folder import Run, find_run
    from tuitune.session.models import Models

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {{name: {SAMPLE_DATA / 'demo_model'}, backend: unsloth}}\n"
        f"data: {{path: {SAMPLE_DATA / 'pirate.jsonl'}, eval_share: 0}}\n"
        "train: {max_steps: 100, learning_rate: 2.0e-3}\n"
        "samples: {prompts: []}\n"
    )
    runs = []
    for name, change in (("one", "seed=1"), ("two", "r=8")):
        arguments = ["run", str(recipe), "--runs", str(tmp_path), "--name", name, "--set", change, "--json"]
        assert run_command(arguments) == 0
        runs.append(find_run(name, tmp_path))

    def of(models: Models, run: Run) -> LoadedModel:
        return models.of(run, None, beside=True, notice=print, progress=lambda text, done, total: None)

    def answers(loaded: LoadedModel, *, adapter: bool, fast: bool) -> list[str]:
        sampling = Sampling(max_new_tokens=24)
        return [
            reply(loaded, [{"role": "user", "content": text}], sampling, adapter=adapter, fast=fast).text
            for text in QUESTIONS
        ]

    alone, base = {}, []
    for run in runs:
        models = Models()
        loaded = of(models, run)
        alone[run] = answers(loaded, adapter=True, fast=False)
        base = answers(loaded, adapter=False, fast=False)
        fast = answers(loaded, adapter=True, fast=True)
        print(run.name, type(loaded.decoder).__name__, alone[run], fast)
        assert fast == alone[run] and answers(loaded, adapter=False, fast=True) == base
        models.unload()
    assert alone[runs[0]] != base
    models = Models()
    for run in (*runs, *runs):
        loaded = of(models, run)
        assert answers(loaded, adapter=True, fast=True) == alone[run]
        assert answers(loaded, adapter=False, fast=True) == base
