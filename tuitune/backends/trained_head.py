"""The output layer and its loss for trained tokens alone: the others' logits would be computed and thrown away."""

import functools
import sys
from typing import Any

# Where Unsloth's own forward passes call the loss over hidden states; other architectures go through other code.
_MODULES = ("unsloth.models.llama", "unsloth.models.mistral")
_FORWARDS = ("_CausalLM_fast_forward", "MistralForCausalLM_fast_forward")

_waiting: list[Any] = []
"""The places of the forward pass that runs, until its loss takes them."""


def leave_out_untrained(model: Any) -> bool:
    """Have `model` (its adapter attached) take `trained_places` in its batches; False where it cannot.

    `trained_places` (1, places), int64, are those whose next token has a label, and others of which none comes twice.
    Loss and gradient are those of all tokens: a token without a label has a loss and a gradient of zero.
    """
    base = model.get_base_model()
    if getattr(type(base).forward, "__name__", "") not in _FORWARDS:
        return False
    for name in _MODULES:
        module = sys.modules.get(name)
        loss = getattr(module, "unsloth_fused_ce_loss", None)
        if loss is not None and not hasattr(loss, "of_all_tokens"):
            vars(module)["unsloth_fused_ce_loss"] = _of_trained_tokens(loss)
    model.register_forward_pre_hook(_take_places, with_kwargs=True)
    return True


def _take_places(module: Any, arguments: Any, options: dict[str, Any]) -> Any:
    _waiting[:] = [options.pop("trained_places")] if "trained_places" in options else []
    return arguments, options


def _of_trained_tokens(loss_of_all: Any) -> Any:
    """Unsloth's fused loss, over the places that are waiting where there are some."""
    from tuitune.backends.chosen import chosen

    @functools.wraps(loss_of_all)
    def loss(*arguments: Any, **options: Any) -> Any:
        places = _waiting.pop() if _waiting else None
        hidden, labels = options.get("hidden_states"), options.get("labels")
        if places is None or labels is None or hidden is None or not options.get("shift_labels", True):
            return loss_of_all(*arguments, **options)
        places = places[0].to(hidden.device)
        options |= {
            "hidden_states": chosen(hidden, places),
            "labels": labels.index_select(1, places + 1),
            "shift_labels": False,
        }
        return loss_of_all(*arguments, **options)

    loss.of_all_tokens = loss_of_all  # type: ignore[attr-defined]
    return loss
