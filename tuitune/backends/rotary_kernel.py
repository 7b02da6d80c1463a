"""A Triton kernel that turns queries and keys by their positions; imported only where there is a GPU."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def _turn(
    source, target, source_head, target_head, cos, sin, columns, HALF: tl.constexpr, HEADS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
):  # fmt: skip
    heads = tl.arange(0, BLOCK_HEADS)[:, None]
    inside = (heads < HEADS) & (columns < HALF)[None, :]
    read = source + heads * source_head + columns[None, :]
    write = target + heads * target_head + columns[None, :]
    first = tl.load(read, mask=inside, other=0)
    second = tl.load(read + HALF, mask=inside, other=0)
    tl.store(write, first * cos - second * sin, mask=inside)
    tl.store(write + HALF, second * cos + first * sin, mask=inside)


@triton.jit
def turn_token(
    query, key, query_out, key_out, query_head, query_token, key_head, key_token, query_out_head, query_out_token,
    key_out_head, key_out_token, cos, sin, cos_row, sin_row, positions,
    HALF: tl.constexpr, QUERY_HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, BLOCK_QUERY_HEADS: tl.constexpr,
    BLOCK_KEY_HEADS: tl.constexpr, BLOCK: tl.constexpr, BACKWARD: tl.constexpr,
):  # fmt: skip
    """All heads of one token, each (2 · HALF,): one program a token, so that its cosines are read once."""
    token = tl.program_id(0).to(tl.int64)
    position = tl.load(positions + token).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    cosines = tl.load(cos + position * cos_row + columns, mask=columns < HALF, other=0)
    sines = tl.load(sin + position * sin_row + columns, mask=columns < HALF, other=0)
    if BACKWARD:
        sines = -sines
    _turn(
        query + token * query_token, query_out + token * query_out_token, query_head, query_out_head,
        cosines[None, :], sines[None, :], columns, HALF, QUERY_HEADS, BLOCK_QUERY_HEADS,
    )  # fmt: skip
    _turn(
        key + token * key_token, key_out + token * key_out_token, key_head, key_out_head,
        cosines[None, :], sines[None, :], columns, HALF, KEY_HEADS, BLOCK_KEY_HEADS,
    )  # fmt: skip
