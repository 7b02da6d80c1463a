"""Attention over rows of every length laid end to end, through torch's own flash kernel."""

from typing import Any


def varlen_kernel() -> str | None:
    """Make Unsloth keep padding-free rows apart with a variable-length kernel; its name, or None where there is none.

    Unsloth takes flash-attn or xformers where one is installed, and torch's `varlen_attn` from torch 2.12 on, whose
    signature it needs. Before that it calls attention once for every row and layer, so torch's flash kernel, which
    knows grouped heads since its first version, is put where Unsloth looks for `varlen_attn`.
    """
    import torch
    from unsloth.utils import attention_dispatch as dispatch

    if dispatch.HAS_FLASH_ATTENTION:
        return "flash-attn varlen"
    if torch.cuda.get_device_capability()[0] < 8:
        return "xformers" if dispatch.HAS_XFORMERS else None
    if dispatch._TORCH_VARLEN_ATTN is None:
        if dispatch.HAS_XFORMERS:
            return "xformers"
        dispatch._TORCH_VARLEN_ATTN = flash_varlen
    return "torch flash varlen"


def flash_varlen(
    query: Any,
    key: Any,
    value: Any,
    cu_seq_q: Any,
    cu_seq_k: Any,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, 0),
    enable_gqa: bool = False,
) -> Any:
    """Causal attention inside each row; the signature of torch 2.12's `torch.nn.attention.varlen.varlen_attn`.

    `query` is (tokens, heads, head size), `key` and `value` (tokens, key-value heads, head size), all in 16-bit;
    `cu_seq_q` holds the rows' cumulative lengths (rows + 1,) as int32. Gives (tokens, heads, head size).
    """
    return _flash_function().apply(query, key, value, cu_seq_q, max_q, scale, window_size[0])


_function: Any = None


def _flash_function() -> Any:
    global _function  # noqa: PLW0603  (torch is imported only where there is a GPU)
    if _function is not None:
        return _function
    import torch

    class FlashVarlen(torch.autograd.Function):  # type: ignore[misc]
        """FlashAttention-2 (Dao 2023), as torch bundles it."""

        @staticmethod
        def forward(ctx: Any, q: Any, k: Any, v: Any, cu: Any, longest: int, scale: float | None, left: int) -> Any:
            out, logsumexp, rng_state, unused, _ = torch.ops.aten._flash_attention_forward(
                q, k, v, cu, cu, longest, longest, 0.0, True, False,
                scale=scale, window_size_left=left, window_size_right=0,
            )  # fmt: skip
            ctx.save_for_backward(q, k, v, out, logsumexp, cu, rng_state, unused)
            ctx.longest, ctx.scale, ctx.left = longest, scale, left
            return out

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            q, k, v, out, logsumexp, cu, rng_state, unused = ctx.saved_tensors
            grads = torch.ops.aten._flash_attention_backward(
                grad.contiguous(), q, k, v, out, logsumexp, cu, cu, ctx.longest, ctx.longest, 0.0, True,
                rng_state, unused, scale=ctx.scale, window_size_left=ctx.left, window_size_right=0,
            )  # fmt: skip
            return (*grads, None, None, None, None)

    _function = FlashVarlen
    return _function
