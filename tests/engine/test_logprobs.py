"""Log-probabilities in chunks: those of whole logits, with the same gradients, whatever follows the last layer."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.test_decode import with_adapter
from tuitune.data.prepare import prepare
from tuitune.recipe import Recipe
from tuitune.train import logprobs
from tuitune.train.batching import Padded, PaddingFree


@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere2", "granite"])
def test_logprobs_entropies_and_gradients_are_those_of_whole_logits(
    name: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Llama's head is plain; the others cap or scale their logits."""
    monkeypatch.setattr(logprobs, "LOGITS_AT_ONCE", 10 * 3072)  # several chunks
    model = {"name": str(folders[name]), "load_in_4bit": False}
    loaded = with_adapter(Recipe.from_data({"model": model, "data": {"path": "none.jsonl"}}))
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(5, 3000, (length,), generator=generator).tolist() for length in (9, 40, 23)]
    batch = Padded(3)([{"input_ids": ids, "labels": [-100] * 4 + ids[4:]} for ids in rows])
    logps, entropies = logprobs.label_logprobs(loaded, batch, temperature=0.7, entropy=True)
    expected, entropies_expected = [], []
    for ids in rows:
        line = torch.tensor([ids])
        whole = torch.log_softmax(loaded.model(input_ids=line).logits.float() / 0.7, -1)[0, 3:-1]
        expected.append(whole.gather(-1, line[0, 4:, None])[:, 0])
        entropies_expected.append(-(whole.exp() * whole).sum(-1))
    assert entropies is not None
    assert torch.allclose(logps, torch.cat(expected), atol=1e-4)
    assert torch.allclose(entropies, torch.cat(entropies_expected), atol=1e-4)
    ours, theirs = (gradients(loaded.model, logprobs_.sum()) for logprobs_ in (logps, torch.cat(expected)))
    assert ours.keys() == theirs.keys() and len(ours) > 10
    assert all(
        torch.allclose(ours[key], theirs[key], rtol=1e-3, atol=1e-4 * float(theirs[key].abs().max())) for key in ours
    )


@pytest.mark.parametrize("method", ["dpo", "orpo", "simpo"])
def test_a_pass_that_reads_nothing_back_is_the_pass_of_the_trainer(method: str, demo_recipe: Recipe) -> None:
    """With the places of labels and the step's amounts told beforehand, and the pass filled up to a larger size."""
    from tuitune.train.methods import learner_of
    from tuitune.train.methods.replies import CollateReplies
    from tuitune.train.methods.reply_trainer import Totals

    preferences = Path(demo_recipe.data.path).with_name("preferences.jsonl")
    recipe = demo_recipe.model_copy(
        update={
            "method": Recipe.from_data(
                {"model": {"name": "m"}, "data": {"path": "d"}, "method": {"name": method}}
            ).method,
            "data": demo_recipe.data.model_copy(update={"path": str(preferences), "columns": {}}),
        }
    )
    loaded = with_adapter(recipe)
    rows = prepare(recipe, loaded.tokenizer).train
    learner: Any = learner_of(recipe)
    sequences = [learner.sequences(rows[place])[side] for side in (0, 1) for place in range(3)]
    plain = CollateReplies(PaddingFree(3), False)(sequences)
    size = plain["input_ids"].shape[1] + 128
    filled = CollateReplies(PaddingFree(3, sizes=(size,), trained_places=True), False)(sequences)
    assert filled["trained_places"].shape[1] > int(plain["label_counts"].sum())
    expected = learner.loss(recipe).outcome(loaded, dict(plain), Totals(*learner.amounts([plain])))
    theirs = gradients(loaded.model, expected.loss)
    loss, figures = learner.compute(loaded, recipe)(dict(filled), torch.tensor(learner.amounts([filled])))
    ours = gradients(loaded.model, loss)
    assert loss.item() == pytest.approx(expected.loss.item(), abs=1e-5)
    assert figures.keys() == expected.sums.keys()
    for name, (value, count) in expected.sums.items():
        assert float(figures[name][0]) == pytest.approx(float(value), rel=1e-4, abs=1e-3), name
        assert int(figures[name][1]) == int(count), name
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[key], theirs[key], rtol=1e-3, atol=1e-5) for key in ours)


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
