"""Fast decoding: many sequences at once with a static cache, on the weights that are trained, the adapter beside them.

The step of one token a sequence is the same kernels on the same memory each time, so on a GPU it is captured as a CUDA
graph, once for each of a few batch sizes, and replayed. Sequences that have ended leave the batch.
"""

import contextlib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, StaticLayer

from tuitune.backends.loaded import LoadedModel
from tuitune.backends.plain import PlainModel
from tuitune.chat.choice import choose
from tuitune.chat.decoding import Decoded, DecodeRequest

_COLUMNS = 128
"""The cache grows by so many tokens; attention kernels want an even number."""
_TOKENS_BETWEEN_LOOKS = 16
"""The host looks at which sequences have ended only so often: each look waits for the GPU."""
_BATCHES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_PREFILL_TOKENS = 16384
"""Prompt tokens, with filling, in one pass."""
_SHARE_FOR_CACHE = 0.6
"""Of the GPU memory that is free, what keys and values may take."""


class Decoder:
    """Decodes with one model; keep it, for what it has captured stays good while the adapter is trained in place."""

    def __init__(self, loaded: LoadedModel) -> None:
        """Raises NotPlain for a model that only `generate` can decode."""
        self.plain = PlainModel(loaded)
        self._loaded = loaded
        self._state: _State | None = None
        self.captured = 0
        """Batch sizes that are CUDA graphs by now."""
        self.capture_failure = ""
        """Why steps are not captured, in the library's words; empty where they are."""

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch is untyped
    def decode(self, request: DecodeRequest) -> list[Decoded]:
        """See `CanDecode`. A sequence depends on its prompt and its seed alone, but for the rounding that other batches
        bring.
        """
        self.plain.refresh(adapter=request.adapter)
        results: list[Decoded] = []
        columns = _round_up(max(map(len, request.prompts)) + request.max_new_tokens, _COLUMNS)
        most = self._most_sequences(columns)
        with self._as_trained(request.adapter):
            for start in range(0, len(request.prompts), most):
                part = slice(start, start + most)
                batch = _Batch(self, replace(request, prompts=request.prompts[part], seeds=request.seeds[part]), start)
                results += batch.run(columns)
        return results

    def forget(self) -> None:
        """Give back the memory of cache and graphs; the next decoding captures again."""
        self._state = None
        self.captured = 0

    def bytes_a_token(self) -> int:
        """Of one sequence's keys and values in all layers."""
        config = self.plain.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(2 * config.num_hidden_layers * heads * width * self.plain.dtype.itemsize)

    def state(self, sequences: int, columns: int) -> "_State":
        """Static memory for so many sequences and tokens, kept while it is large enough."""
        state = self._state
        if state is None or state.sequences < sequences or state.columns < columns:
            if state is not None:
                sequences, columns = max(sequences, state.sequences), max(columns, state.columns)
            self.forget()
            del state
            self._state = _State(self.plain, sequences, columns)
        assert self._state is not None
        return self._state

    def _most_sequences(self, columns: int) -> int:
        if self.plain.device.type != "cuda":
            return _BATCHES[-1]
        held = self._state.sequences * self._state.columns if self._state else 0
        free_bytes = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        tokens = held + int(_SHARE_FOR_CACHE * free_bytes) // self.bytes_a_token()
        return max(1, min(_BATCHES[-1], tokens // columns))

    def _as_trained(self, adapter: bool) -> AbstractContextManager[Any]:
        if not self.plain.own_modules:
            return nullcontext()
        stack = contextlib.ExitStack()
        if self.plain.device.type == "cuda":
            stack.enter_context(torch.autocast("cuda", dtype=self.plain.dtype, cache_enabled=False))
        if not adapter and hasattr(self._loaded.model, "disable_adapter"):
            stack.enter_context(self._loaded.model.disable_adapter())
        return stack


class _State:
    """Static memory of a batch: what a captured step reads and writes."""

    def __init__(self, plain: PlainModel, sequences: int, columns: int) -> None:
        self.plain, self.sequences, self.columns = plain, sequences, columns
        device = plain.device
        self.tokens = torch.zeros(sequences, 1, dtype=torch.long, device=device)
        self.positions = torch.zeros(sequences, 1, dtype=torch.long, device=device)
        self.starts = torch.zeros(sequences, 1, dtype=torch.long, device=device)
        """The column of each sequence's first token: prompts end together."""
        self.column = torch.zeros(1, dtype=torch.long, device=device)
        """Where the step's keys and values go."""
        self.numbers = torch.arange(columns, device=device)
        self.layers = [_Layer(self) for _ in plain.windows]
        self.graphs: dict[int, tuple[Any, Tensor]] = {}
        self.pool: Any = None

    def step(self, rows: int) -> Tensor:
        """Logits (rows, vocabulary) after each sequence's newest token, and everything one column further."""
        if self.plain.device.type == "cuda" and rows in self.graphs:
            graph, logits = self.graphs[rows]
            graph.replay()
            return logits
        return self.compute(rows)

    def compute(self, rows: int) -> Tensor:
        shown = self.numbers[None] <= self.column[:, None]
        shown = shown & (self.numbers[None] >= self.starts[:rows])
        masks: dict[int | None, Tensor] = {}
        for window in set(self.plain.windows):
            mask = shown if window is None else shown & (self.numbers[None] > self.column[:, None] - window)
            masks[window] = mask[:, None, None]
        for layer in self.layers:
            layer.writes(rows, None)
        logits = self.forward(self.tokens[:rows], self.positions[:rows], masks)
        self.column += 1
        self.positions[:rows] += 1
        return logits

    def forward(self, ids: Tensor, positions: Tensor, masks: dict[int | None, Tensor]) -> Tensor:
        """Logits (rows, vocabulary) of the last token of each row of `ids`."""
        windows = self.plain.windows
        mask: Any = masks[windows[0]]
        if len(set(windows)) > 1:
            kinds = zip(self.plain.config.layer_types, windows, strict=True)
            mask = {kind: masks[window] for kind, window in kinds}
        output = self.plain.module(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=_cache(self.layers),
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def capture(self, rows: int) -> None:
        """Make the step of so many sequences a CUDA graph. Raises whatever cannot be captured."""
        column, positions = self.column.clone(), self.positions.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self.compute(rows)
                self.column.copy_(column)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            logits = self.compute(rows)
        self.pool = self.pool or graph.pool()
        self.graphs[rows] = (graph, logits)
        self.column.copy_(column)
        self.positions.copy_(positions)

    def keep(self, rows: Tensor) -> None:
        """Let go of all sequences but those, which move to the front in that order."""
        count = len(rows)
        for tensor in (self.tokens, self.positions, self.starts):
            tensor[:count] = tensor[rows]
        for layer in self.layers:
            if layer.is_initialized:
                layer.keys[:count] = layer.keys[rows]
                layer.values[:count] = layer.values[rows]


class _Layer(StaticLayer):  # type: ignore[misc]  # transformers is untyped
    """One layer's keys and values of all sequences, written at the column that the batch is at."""

    def __init__(self, state: _State) -> None:
        super().__init__(max_cache_len=state.columns)
        self.is_initialized: bool = False
        self.keys: Any = None
        self.values: Any = None
        self._state = state
        self._rows: Any = 0
        self._prompt: int | None = None

    def writes(self, rows: int | Tensor, prompt: int | None) -> None:
        """What the next update is of: a token of the first `rows` sequences, or `prompt` tokens of those numbers."""
        self._rows, self._prompt = rows, prompt

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            shape = (self._state.sequences, key_states.shape[1], self._state.columns)
            self.keys = key_states.new_zeros(*shape, key_states.shape[-1])
            self.values = value_states.new_zeros(*shape, value_states.shape[-1])
            self.is_initialized = True
        if self._prompt is not None:
            begin = self._rows
            self.keys[begin : begin + len(key_states), :, : self._prompt] = key_states
            self.values[begin : begin + len(key_states), :, : self._prompt] = value_states
            return key_states, value_states
        keys, values = self.keys[: self._rows], self.values[: self._rows]
        keys.index_copy_(2, self._state.column, key_states)
        values.index_copy_(2, self._state.column, value_states)
        return keys, values

    def get_seq_length(self) -> int:
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._state.columns, 0


def _cache(layers: list[_Layer]) -> Cache:
    return Cache(layers=layers)


class _Batch:
    """One decoding of prompts that fit into memory together."""

    def __init__(self, decoder: Decoder, request: DecodeRequest, first: int) -> None:
        """`first` is the number of the batch's first prompt among all that are decoded."""
        self.decoder, self.request, self.first = decoder, request, first
        self.device = decoder.plain.device
        self.most, prompts = request.max_new_tokens, request.prompts
        self.ends = torch.tensor(sorted(request.ends), dtype=torch.long, device=self.device)
        count = len(prompts)
        self.uniforms = torch.stack(
            [torch.rand(self.most, dtype=torch.float64, generator=_generator(seed)) for seed in request.seeds]
        ).to(self.device)
        self.ids = torch.zeros(count, self.most, dtype=torch.long, device=self.device)
        self.logprobs = torch.zeros(count, self.most, dtype=torch.float32, device=self.device)
        self.lengths = torch.zeros(count, dtype=torch.long, device=self.device)
        self.ended = torch.zeros(count, dtype=torch.bool, device=self.device)
        self.seen: Tensor | None = None
        self.alive = torch.arange(count, device=self.device)
        """Which sequence is in each row of the batch."""

    def run(self, columns: int) -> list[Decoded]:
        prompts, on_token = self.request.prompts, self.request.on_token
        rows = _at_least(len(prompts)) if self.device.type == "cuda" else len(prompts)
        state = self.decoder.state(rows, columns)
        logits = self._prefill(state)
        stride = 1 if on_token else _TOKENS_BETWEEN_LOOKS
        for number in range(self.most):
            tokens = self._choose(logits[: len(self.alive)], number)
            if on_token:
                for row, token in zip(self.alive.tolist(), tokens.tolist(), strict=True):
                    if self.lengths[row] == number + 1:
                        on_token(self.first + row, token)
            if number + 1 == self.most:
                break
            if (number + 1) % stride == 0 and (self.request.cancelled() or not self._drop_ended(state)):
                break
            state.tokens[: len(self.alive), 0] = self.ids[self.alive, number]
            rows = _at_least(len(self.alive)) if self.device.type == "cuda" else len(self.alive)
            self._capture(state, rows)
            logits = state.step(rows)
        lengths, ended = self.lengths.tolist(), self.ended.tolist()
        ids, logprobs = self.ids.tolist(), self.logprobs.tolist()
        return [
            Decoded(ids[row][: lengths[row]], logprobs[row][: lengths[row]], ended[row]) for row in range(len(prompts))
        ]

    def _prefill(self, state: _State) -> Tensor:
        """Fill the cache with the prompts, each different one once; logits (sequences, vocabulary) after them."""
        prompts = self.request.prompts
        longest = max(map(len, prompts))
        different = list(dict.fromkeys(map(tuple, prompts)))
        place = {prompt: number for number, prompt in enumerate(different)}
        number_of = torch.tensor([place[tuple(prompt)] for prompt in prompts], device=self.device)
        at_once = max(1, _PREFILL_TOKENS // longest)
        parts = []
        for first in range(0, len(different), at_once):
            part = different[first : first + at_once]
            ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in part], device=self.device)
            starts = torch.tensor([longest - len(prompt) for prompt in part], device=self.device)
            numbers = state.numbers[:longest]
            shown = (numbers[None, None] <= numbers[None, :, None]) & (numbers[None, None] >= starts[:, None, None])
            # A filling token sees itself, or attention would divide by 0.
            shown = shown | (numbers[None, None] == numbers[None, :, None])
            masks: dict[int | None, Tensor] = {}
            for window in set(state.plain.windows):
                near = shown if window is None else shown & (numbers[None, None] > numbers[None, :, None] - window)
                masks[window] = near[:, None]
            for layer in state.layers:
                layer.writes(first, longest)
            positions = (numbers[None] - starts[:, None]).clamp(min=0)
            parts.append(state.forward(ids, positions, masks))
            state.starts[first : first + len(part), 0] = starts
        state.column.fill_(longest)
        state.positions[: len(different), 0] = longest - state.starts[: len(different), 0]
        state.keep(number_of)
        state.starts[len(prompts) :] = longest  # rows that only fill a batch up
        if self.request.choice.repetition_penalty != 1:
            vocabulary = parts[0].shape[-1]
            self.seen = torch.zeros(len(prompts), vocabulary, dtype=torch.bool, device=self.device)
            for row, prompt in enumerate(prompts):
                self.seen[row, torch.tensor(prompt, device=self.device)] = True
        return torch.cat(parts)[number_of]

    def _choose(self, logits: Tensor, number: int) -> Tensor:
        """The next token of each row, noted where the sequence has not ended."""
        seen = None if self.seen is None else self.seen[self.alive]
        tokens, logprobs = choose(logits, self.request.choice, self.uniforms[self.alive, number], seen)
        if self.seen is not None:
            self.seen[self.alive, tokens] = True
        self.ids[self.alive, number] = tokens
        self.logprobs[self.alive, number] = logprobs
        going = ~self.ended[self.alive]
        self.lengths[self.alive] += going
        self.ended[self.alive] |= torch.isin(tokens, self.ends)
        return tokens

    def _drop_ended(self, state: _State) -> bool:
        """Take sequences that have ended out of the batch where it becomes smaller by that; whether any is left."""
        going = (~self.ended[self.alive]).nonzero()[:, 0]
        if len(going) == 0:
            return False
        smaller = len(going) < len(self.alive)
        if self.device.type == "cuda":
            smaller = _at_least(len(going)) < _at_least(len(self.alive))
        if smaller:
            state.keep(going)
            self.alive = self.alive[going]
        return True

    def _capture(self, state: _State, rows: int) -> None:
        decoder = self.decoder
        if self.device.type != "cuda" or decoder.capture_failure or rows in state.graphs:
            return
        try:
            state.capture(rows)
            decoder.captured += 1
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a layer does that no graph can hold
            decoder.capture_failure = str(error).splitlines()[0] if str(error) else type(error).__name__
            state.graphs.clear()


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def _at_least(rows: int) -> int:
    return next((size for size in _BATCHES if size >= rows), rows)
