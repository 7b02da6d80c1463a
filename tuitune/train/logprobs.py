"""Log-probabilities of a batch's labels by the model that is trained, without ever holding all its logits."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tuitune.backends.chosen import chosen
from tuitune.backends.loaded import LoadedModel
from tuitune.chat.decoder import trained_precision
from tuitune.masking import IGNORED
from tuitune.methods.pairs import LOGITS_AT_ONCE


def label_logprobs(
    loaded: LoadedModel, batch: dict[str, Any], *, temperature: float = 1.0, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities (labels,) in fp32 of the batch's labels, rows in order, and if asked their entropies.

    The entropies carry no gradient. `batch` is what a collator of `tuitune.train.batching` gives; logits are divided by
    `temperature` first. Of a batch with `trained_places` they are (places,), 0 at those without a label, which come
    last; then nothing here waits for a GPU.
    """
    inputs = {name: tensor.to(loaded.model.device, non_blocking=True) for name, tensor in batch.items()}
    labels, places = inputs.pop("labels"), inputs.pop("trained_places", None)
    is_padded = places is not None
    with trained_precision(loaded):
        hidden = hidden_states(loaded, inputs)
        # The state at a token tells of the next one.
        following = labels[:, 1:].reshape(-1)
        if places is None:
            places = (following != IGNORED).nonzero()[:, 0]
            states = hidden[:, :-1].reshape(-1, hidden.shape[-1])[places]
        else:
            places = places[0]
            states = chosen(hidden, places)[0]
        targets = following[places]
        has_label = targets != IGNORED
        targets = targets.clamp(min=0)
        head = Head(loaded)
        at_once = max(1, LOGITS_AT_ONCE // head.vocabulary)
        parts = [
            checkpoint(_chunk, head, states[at : at + at_once], targets[at : at + at_once], temperature, entropy,
                       use_reentrant=False, preserve_rng_state=False)
            for at in range(0, len(targets), at_once)
        ]  # fmt: skip
    logprobs = torch.cat([part[0] for part in parts]) if parts else states.new_zeros(0, dtype=torch.float32)
    entropies = torch.cat([part[1] for part in parts]) if entropy and parts else None
    if is_padded:
        logprobs = torch.where(has_label, logprobs, 0)
        entropies = None if entropies is None else torch.where(has_label, entropies, 0)
    return logprobs, entropies


def hidden_states(loaded: LoadedModel, inputs: dict[str, Tensor]) -> Tensor:
    """What the decoder hands to the head, (rows, tokens, width); the head itself computes one token's logits only."""
    base = loaded.model.get_base_model() if hasattr(loaded.model, "get_base_model") else loaded.model
    outputs: list[Tensor] = []

    def keep(module: Any, arguments: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output.last_hidden_state)

    hook = base.model.register_forward_hook(keep)
    try:
        loaded.model(**inputs, use_cache=False, logits_to_keep=1)
    finally:
        hook.remove()
    return outputs[-1]


class Head:
    """From hidden states to logits, as the architecture does it after its last layer."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._linear = loaded.model.get_output_embeddings()
        config = loaded.model.config.get_text_config()
        self._cap: float | None = getattr(config, "final_logit_softcapping", None)
        self._scale = float(getattr(config, "logit_scale", None) or 1) / float(
            getattr(config, "logits_scaling", None) or 1
        )
        weight = self._linear.weight
        self.vocabulary: int = weight.shape[0]

    def __call__(self, states: Tensor) -> Tensor:
        """Logits in fp32."""
        logits: Tensor = self._linear(states.to(self._linear.weight.dtype)).float()
        if self._scale != 1:
            logits = logits * self._scale
        if self._cap:
            logits = self._cap * torch.tanh(logits / self._cap)
        return logits


def _chunk(
    head: Head, states: Tensor, targets: Tensor, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    logits = head(states)
    if temperature != 1:
        logits = logits / temperature
    normaliser = torch.logsumexp(logits, dim=-1)
    logprobs = logits.gather(-1, targets[:, None])[:, 0] - normaliser
    if not entropy:
        return logprobs, None
    with torch.no_grad():
        probabilities = (logits - normaliser[:, None]).exp()
        entropies = normaliser - (probabilities * logits).sum(-1)
    return logprobs, entropies.detach()
