"""Attention over rows of every length laid end to end: which kernels keep the rows apart, and which ones ran."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tuitune.machine.precision import is_ampere_or_later

_KERNELS = {
    "_torch_varlen_packed": "torch flash varlen",
    "flash_attn_varlen_func": "flash-attn varlen",
    "xformers_attention": "xformers",
    "_sdpa_packed_segments": "sdpa, row by row",
    "scaled_dot_product_attention": "sdpa",
}
"""Functions of Unsloth's attention dispatch to what they are called for the user."""


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
    if not is_ampere_or_later(torch.cuda.get_device_capability()):
        return "xformers" if dispatch.HAS_XFORMERS else None
    if dispatch._TORCH_VARLEN_ATTN is None:
        if dispatch.HAS_XFORMERS:
            return "xformers"
        dispatch._TORCH_VARLEN_ATTN = flash_varlen
    attend_without_copies()
    return "torch flash varlen"


def attend_without_copies() -> None:
    """Have Unsloth hand padding-free rows to the variable-length kernel, and take gradients back, as they lie.

    Taking the only batch by its index, as Unsloth does, has each gradient of queries, keys and values written into a
    tensor of zeros in another order, and copied again from there. Calling it again changes nothing.
    """
    from unsloth.utils import attention_dispatch as dispatch

    unsloths = dispatch._torch_varlen_packed
    if hasattr(unsloths, "of_unsloth"):
        return

    def attend(query: Any, key: Any, value: Any, seq_info: Any, **options: Any) -> Any:
        if not options["is_causal"]:
            return unsloths(query, key, value, seq_info, **options)
        ends, longest = dispatch.cover_padded_cu_seqlens(seq_info, query.shape[-2])
        window = options["sliding_window"]
        out = dispatch._TORCH_VARLEN_ATTN(
            *(tensor.squeeze(0).transpose(0, 1).contiguous() for tensor in (query, key, value)),
            *(ends, ends, longest, longest),
            scale=options["scale"],
            window_size=(-1 if window is None else window - 1, 0),
            enable_gqa=options["n_groups"] != 1,
        )
        return out.unsqueeze(0)

    attend.of_unsloth = unsloths  # type: ignore[attr-defined]
    dispatch._torch_varlen_packed = attend


def attention_of(config: Any, *, compiled: bool) -> str | None:
    """What Unsloth is asked to attend with in the model of this config; None leaves it the choice.

    For Gemma 3 it would choose flex attention, which uncompiled is a third as fast as plain matrix products and takes
    memory for every pair of tokens of a batch; sdpa it refuses there.
    """
    return "eager" if not compiled and config.model_type in ("gemma3", "gemma3_text") else None


def lay_end_to_end(model: Any) -> bool:
    """Make Unsloth keep padding-free rows apart in every layer of `model`, its adapter attached.

    False for architectures whose attention Unsloth knows to run over the rows' ends, and for plain matrix products,
    which would hold every pair of the batch's tokens in memory. For the others a check on the model itself has the last
    word: convolutions and linear attention get the rows' ends where Unsloth has a kernel for it.
    """
    from unsloth.trainer import PADDING_FREE_BLOCKLIST
    from unsloth.utils.hf_packed_attention import enable_hf_packed_attention
    from unsloth.utils.packing import patch_hybrid_linear_attention_varlen

    text = model.config.get_text_config()
    if {model.config.model_type, text.model_type} & PADDING_FREE_BLOCKLIST or text._attn_implementation == "eager":
        return False
    enable_hf_packed_attention()
    patch_hybrid_linear_attention_varlen(model)
    return True


def tell_row_ends(lengths: Any, ends: Any, longest: int, tokens: int) -> None:
    """Tell Unsloth's attention beforehand what it would read back from the GPU in the pass with these row lengths.

    `lengths` (rows,) and `ends` (rows + 1,), cumulative and from 0, are int32 on the GPU, and the pass must be given
    this very `lengths` as its `packed_seq_lengths`. They may change between replays of a captured pass of so many
    `tokens`, as long as no row has more than `longest`; rows of no token may stand at the end.
    """
    from unsloth.utils import packing

    packing._PACKED_INFO_CACHE[lengths.device] = {"seq_lengths": lengths, "result": (lengths, ends, longest)}
    packing._PADDED_CU_SEQLENS_CACHE[lengths.device] = {
        "cu_seqlens": ends,
        "total": tokens,
        "result": (ends, longest),
    }
    # Asked only whether the rows are of different lengths, and so for the variable-length kernel.
    packing._SEGMENT_LENGTHS_CACHE[lengths.device] = (lengths, tokens, (tokens - 1, 1))


def _uses_flex(model: Any) -> bool:
    return str(getattr(model.config.get_text_config(), "_attn_implementation", None)).startswith("flex")


@contextmanager
def watched(model: Any) -> Iterator[list[str]]:
    """A list that holds, after the block, what the attention kernels that ran inside are called for the user."""
    import torch
    from unsloth.utils import attention_dispatch as dispatch
    from unsloth.utils.hf_packed_attention import HF_PACKED_ATTENTION_STATS as counts

    ran: list[str] = []
    earlier_counts = dict(counts)
    places = [(dispatch, name) for name in _KERNELS] + [(torch.nn.functional, "scaled_dot_product_attention")]
    functions = [(place, name, getattr(place, name, None)) for place, name in places]

    def noted(name: str, function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            ran.append(_KERNELS[name])
            return function(*arguments, **options)

        return call

    for place, name, function in functions:
        if function is not None:
            setattr(place, name, noted(name, function))
    try:
        yield ran
    finally:
        for place, name, function in functions:
            setattr(place, name, function)
    calls = {name: counts[name] - earlier_counts[name] for name in ("fast", "efficient", "fallback")}
    varlen = calls["fast"] > calls["efficient"] and not {"flash-attn varlen", "xformers"} & {*ran}
    names = ["torch flash varlen"] if varlen else []
    names += ["torch memory-efficient varlen"] if calls["efficient"] else []
    names += ["sdpa with a block mask"] if calls["fallback"] else []
    # Rows alone go through plain sdpa; it is named only where no variable-length kernel took the batch.
    names += [name for name in dict.fromkeys(ran) if name != "sdpa"]
    if not names:
        names = ["flex attention"] if _uses_flex(model) else ["sdpa"] if ran else ["plain matrix products"]
    if getattr(model, "_unsloth_varlen_forward_wrapped", False):
        names.append("linear attention with row ends")
    ran[:] = names


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
