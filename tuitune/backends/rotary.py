"""Rotary positions in one pass over queries and keys, in place of Unsloth's kernel and the copies around it.

Unsloth starts a program for each token and head, and copies gradients into another order before and back after it.
"""

import logging
from typing import Any

log = logging.getLogger(__name__)

_equal: dict[tuple[Any, ...], bool] = {}
"""Shapes of heads and kinds of numbers to whether this kernel gave what Unsloth's does, bit for bit."""


def turn_in_one_pass() -> None:
    """Have Unsloth's models turn padding-free queries and keys by this kernel; calling it again changes nothing.

    For each kind of model the first pass is turned both ways, and where a bit differs Unsloth's kernel stays.
    """
    import torch
    from unsloth.kernels import rope_embedding

    unsloths = rope_embedding._fast_rope_embedding_eager
    if hasattr(unsloths, "of_unsloth"):
        return

    def turn(query: Any, key: Any, cos: Any, sin: Any, positions: Any = None) -> Any:
        if positions is None or query.shape[0] != 1 or query.stride(-1) != 1 or key.stride(-1) != 1:
            return unsloths(query, key, cos, sin, positions)
        cos, sin = cos.squeeze(), sin.squeeze()
        kind = (query.dtype, query.shape[1], key.shape[1], query.shape[3], cos.dtype, query.device)
        if kind not in _equal and torch.is_inference_mode_enabled():  # without gradients to compare
            return unsloths(query, key, cos, sin, positions)
        if kind not in _equal:
            _equal[kind] = _is_equal(unsloths, query.detach(), key.detach(), cos, sin, positions)
        if not _equal[kind]:
            return unsloths(query, key, cos, sin, positions)
        return _function().apply(query, key, cos, sin, positions)

    turn.of_unsloth = unsloths  # type: ignore[attr-defined]
    rope_embedding._fast_rope_embedding_eager = turn


def turned(query: Any, key: Any, cos: Any, sin: Any, positions: Any, *, backward: bool) -> tuple[Any, Any]:
    """`query` (1, heads, tokens, head size) and `key` turned to their `positions` (1, tokens), or back.

    `cos` and `sin` are (positions, at least half the head size). The results are laid out as what they come from.
    """
    import torch
    import triton

    from tuitune.backends.rotary_kernel import turn_token

    _, query_heads, tokens, size = query.shape
    key_heads = key.shape[1]
    query_out, key_out = torch.empty_like(query), torch.empty_like(key)
    positions = positions.reshape(-1).to(device=query.device, dtype=torch.int32)
    with torch.cuda.device(query.device):
        turn_token[(tokens,)](
            query, key, query_out, key_out,
            query.stride(1), query.stride(2), key.stride(1), key.stride(2),
            query_out.stride(1), query_out.stride(2), key_out.stride(1), key_out.stride(2),
            cos, sin, cos.stride(0), sin.stride(0), positions,
            HALF=size // 2, QUERY_HEADS=query_heads, KEY_HEADS=key_heads,
            BLOCK_QUERY_HEADS=triton.next_power_of_2(query_heads), BLOCK_KEY_HEADS=triton.next_power_of_2(key_heads),
            BLOCK=triton.next_power_of_2(size // 2), BACKWARD=backward, num_warps=4,
        )  # fmt: skip
    return query_out, key_out


def _is_equal(unsloths: Any, query: Any, key: Any, cos: Any, sin: Any, positions: Any) -> bool:
    """Whether both kernels give the same bits, forward and backward, on these values."""
    import torch

    try:
        with torch.enable_grad():
            inputs = [tensor.clone().requires_grad_() for tensor in (query, key)]
            functions = (unsloths, _function().apply)
            outputs = [function(*(tensor * 1 for tensor in inputs), cos, sin, positions) for function in functions]
            weights = [tensor.detach().clone() for tensor in outputs[0]]  # any will do; no random state is moved
            gradients = [torch.autograd.grad(output, inputs, weights) for output in outputs]
        pairs = [*zip(*outputs, strict=True), *zip(*gradients, strict=True)]
        return all(bool(torch.equal(one, other)) for one, other in pairs)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler of another version says: Unsloth's own kernel does it too
        log.warning("rotary positions are left to Unsloth's kernel", exc_info=error)
        return False


_turning: Any = None


def _function() -> Any:
    global _turning  # noqa: PLW0603  (torch is imported only where there is a GPU)
    if _turning is not None:
        return _turning
    import torch

    class Turned(torch.autograd.Function):  # type: ignore[misc]
        """Rotary position embedding (Su et al. 2021); its gradient is the turn back."""

        @staticmethod
        def forward(ctx: Any, query: Any, key: Any, cos: Any, sin: Any, positions: Any) -> Any:
            ctx.cos, ctx.sin, ctx.positions = cos, sin, positions
            return turned(query, key, cos, sin, positions, backward=False)

        @staticmethod
        def backward(ctx: Any, query: Any, key: Any) -> Any:
            query, key = (tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in (query, key))
            return *turned(query, key, ctx.cos, ctx.sin, ctx.positions, backward=True), None, None, None

    _turning = Turned
    return _turning
