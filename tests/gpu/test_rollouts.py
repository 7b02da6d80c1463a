"""On a GPU: captured decoding has the probabilities of the training's forward, and a GRPO run learns."""

import json
from pathlib import Path

import pytest

from tests.adapters import draw_adapter
from tests.conftest import DEMO
from tests.engine.training import trained
from tests.gpu.card import require_card
from tuitune import backends
from tuitune.backends.loaded import LoadedModel
from tuitune.recipe import Recipe

pytestmark = pytest.mark.gpu
torch = require_card(unsloth=False)


def loaded_with(in_4bit: bool) -> LoadedModel:
    """The demo model, with an adapter that changes what it says."""
    loaded = backends.load(Recipe.load(DEMO / "demo.yaml", [f"load_in_4bit={str(in_4bit).lower()}"]), print)
    loaded.backend.attach(loaded)
    for parameter in loaded.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    draw_adapter(loaded.model, std=0.02)
    return loaded


@pytest.mark.parametrize("in_4bit", [True, False])
def test_captured_steps_have_the_probabilities_of_the_training(in_4bit: bool) -> None:
    from tuitune.chat.choice import Choice
    from tuitune.chat.decoder import logprobs_of
    from tuitune.chat.decoding import DecodeRequest
    from tuitune.chat.fast_decoder import Decoder

    loaded = loaded_with(in_4bit)
    decoder = Decoder(loaded)
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(5, 3000, (length,), generator=generator).tolist() for length in (3, 40, 90, 17, 60)]
    request = DecodeRequest(
        prompts=prompts, choice=Choice(), seeds=range(5), max_new_tokens=64, ends=set(range(0, 3000, 40))
    )
    decoded = decoder.decode(request)
    differences = torch.cat(
        [
            logprobs_of(loaded, prompt, result.ids) - torch.tensor(result.logprobs)
            for prompt, result in zip(prompts, decoded, strict=True)
        ]
    )
    print(
        f"mean difference {differences.abs().mean():.5f}, signed {differences.mean():.5f}, {decoder.captured} captured"
    )
    assert decoder.captured and not decoder.capture_failure
    assert differences.abs().mean() < 0.05 and differences.mean().abs() < 0.02
    assert [result.ids for result in decoder.decode(request)] == [result.ids for result in decoded]


def test_rewards_rise_in_a_whole_run(tmp_path: Path) -> None:
    raw = Recipe.load(DEMO / "demo_grpo.yaml").model_dump(mode="json")
    raw["method"]["beta"] = 0.01
    recipe = Recipe.from_data(raw, changes=["load_in_4bit=true", "max_steps=20", "eval_steps=0"])
    _, history = trained(recipe, tmp_path, "run")
    rewards = [step.metrics["reward"] for step in history.steps]
    print(json.dumps({"rewards": rewards, "last": history.steps[-1].metrics}))
    assert sum(rewards[-4:]) / 4 > max(0.5, 2 * sum(rewards[:2]) / 2)
    assert all(step.metrics["sampling_difference"] < 0.1 and step.metrics["kl"] >= 0 for step in history.steps)
