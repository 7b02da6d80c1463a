"""Log-probabilities in chunks: those of whole logits, with the same gradients, whatever follows the last layer."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.test_decode import with_adapter
from tuitune.recipe import Recipe
from tuitune.train import logprobs
from tuitune.train.batching import Padded


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


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
