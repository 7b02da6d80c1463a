"""Streaming replies from a loaded model, with the adapter on or off."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuitune.backends.loaded import LoadedModel
from tuitune.chat.sampling import Sampling
from tuitune.chat.window import Cut, fitted
from tuitune.chat_template.turn_end import end_of_turn_id
from tuitune.conversation import Conversation, UnusableRow
from tuitune.errors import TuituneError
from tuitune.language import _
from tuitune.text import one_line

if TYPE_CHECKING:
    from tuitune.chat.choice import Choice


@dataclass(frozen=True)
class ChatReply:
    """A reply; `ended` is False where it was stopped or reached `max_new_tokens`.

    `seconds` are those of reading the prompt and writing the reply, `first_token_s` those until its first token.
    """

    text: str
    tokens: int
    seconds: float
    ended: bool
    first_token_s: float = 0.0
    unseen: int = 0
    """Messages that the conversation has but the model no longer saw."""
    passages: int = 0
    """Passages of documents that it saw."""


def reply(
    loaded: LoadedModel,
    messages: Conversation,
    sampling: Sampling,
    *,
    adapter: bool = True,
    passages: list[str] | None = None,
    fast: bool = False,
    on_text: Callable[[str], None] = lambda text: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> ChatReply:
    """The model's next message; pieces of text go to `on_text` as they come.

    With `adapter` False the base model answers. `passages` of documents stand before the newest message. What does not
    fit the model's context is left out by the rule of `tuitune.chat.window`. `fast` lets a model on a GPU be decoded by
    captured steps, which takes memory for as long as it is loaded. `cancelled` is asked after each token.
    Raises TuituneError where the tokenizer's chat template refuses the messages, or the newest alone fills the context.
    """
    started = time.monotonic()
    limit = context_tokens(loaded)
    cut = fitted(messages, passages or [], lambda part: prompt_ids(loaded, part), limit, sampling.max_new_tokens)
    room = sampling.max_new_tokens if limit is None else min(sampling.max_new_tokens, limit - len(cut.ids))
    streamer = _Streamer(loaded.tokenizer, on_text)
    ends = end_tokens(loaded)
    generate = _generated
    if fast and _decodes_fast(loaded, cut.ids):
        generate = _decoded
    reply_ids = generate(loaded, cut, sampling, room, ends, streamer, adapter=adapter, cancelled=cancelled)
    ended = bool(reply_ids) and reply_ids[-1] in ends
    text = loaded.tokenizer.decode(reply_ids, skip_special_tokens=True).strip()
    ended_at = time.monotonic()
    first = (streamer.first_at or ended_at) - started
    return ChatReply(text, len(reply_ids), ended_at - started, ended, first, cut.unseen, cut.passages)


def _decodes_fast(loaded: LoadedModel, ids: list[int]) -> bool:
    """Whether the fast decoder is right for the model, which is found out on the ids of the first prompt.

    Of several adapters on one base each would need a decoder and its copy of the weights, so they have none.
    """
    if loaded.model.device.type != "cuda" or len(getattr(loaded.model, "peft_config", {})) > 1:
        return False
    from tuitune.chat.decoder import decoder_of
    from tuitune.chat.fast_decoder import Decoder

    if loaded.decoder is None:
        loaded.decoder = decoder_of(loaded, ids, lambda text: None)
    return isinstance(loaded.decoder, Decoder)


def _choice(sampling: Sampling) -> "Choice":
    from tuitune.chat.choice import Choice

    return Choice(sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p, sampling.repetition_penalty)


def _decoded(
    loaded: LoadedModel,
    cut: Cut,
    sampling: Sampling,
    room: int,
    ends: set[int],
    streamer: "_Streamer",
    *,
    adapter: bool,
    cancelled: Callable[[], bool],
) -> list[int]:
    """As `_generated`, by the fast decoder."""
    from tuitune.chat.decoding import DecodeRequest

    loaded.backend.for_inference(loaded)
    (result,) = loaded.decoder.decode(
        DecodeRequest(
            prompts=[cut.ids],
            choice=_choice(sampling),
            seeds=[sampling.seed],
            max_new_tokens=room,
            ends=ends,
            adapter=adapter,
            on_token=lambda _, token: streamer.take([token]),
            cancelled=cancelled,
        )
    )
    streamer.end()
    ids: list[int] = result.ids
    return ids


def _generated(
    loaded: LoadedModel,
    cut: Cut,
    sampling: Sampling,
    room: int,
    ends: set[int],
    streamer: "_Streamer",
    *,
    adapter: bool,
    cancelled: Callable[[], bool],
) -> list[int]:
    """The ids of a reply of at most `room` tokens, which `streamer` gets one by one; ends with one of `ends`."""
    import torch

    tokenizer, model = loaded.tokenizer, loaded.model
    if sampling.temperature > 0:
        torch.manual_seed(sampling.seed)
    loaded.backend.for_inference(loaded)
    prompt = torch.tensor([cut.ids], device=model.device)
    adapter_off = (
        contextlib.nullcontext() if adapter or not hasattr(model, "disable_adapter") else model.disable_adapter()
    )
    with adapter_off, torch.inference_mode():
        output = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            **_choice(sampling).for_generate(),
            max_new_tokens=room,
            eos_token_id=sorted(ends),
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends),
            streamer=streamer,
            stopping_criteria=[lambda ids, scores, **_: torch.full((len(ids),), cancelled(), device=ids.device)],
        )
    ids: list[int] = output[0, len(cut.ids) :].tolist()
    return ids


def context_tokens(loaded: LoadedModel) -> int | None:
    """The tokens of prompt and reply that the model takes; None where nothing limits them."""
    limits = (
        getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None),
        getattr(loaded.model, "max_seq_length", None),  # Unsloth's, which it allocates its buffers for
    )
    return min((limit for limit in limits if isinstance(limit, int) and limit > 0), default=None)


def loading_text(loading: str, done: int | None, total: int | None) -> str:
    """What a session's `loading` part says, on one line: `Loading the model's weights, 120 of 290`."""
    text = one_line(loading, max_length=100)
    return _("{text}, {done:,} of {total:,}", text=text, done=done, total=total) if total else text


def prompt_ids(loaded: LoadedModel, messages: Conversation) -> list[int]:
    """The ids that a reply to these messages is generated from: those that stood before a reply in training.

    Some templates write more before a reply than their generation prompt does, such as an empty thinking block. A
    model whose data brings its own thinking has learnt to begin there, and gets the generation prompt alone. Raises
    TuituneError where the template refuses the messages.
    """
    from tuitune.masking import Masker

    if loaded.masker is None:
        loaded.masker = Masker(loaded.tokenizer, "last", loaded.recipe.data.max_length)
    try:
        ids: list[int] = loaded.masker.prompt_ids(messages, thinks=loaded.thinks)
    except UnusableRow as error:
        raise TuituneError(
            "The model cannot answer this conversation, because {reason}.", reason=error.sentence
        ) from error
    return ids


def end_tokens(loaded: LoadedModel) -> set[int]:
    """Every token that ends a reply: the tokenizer's, the generation config's, and the template's end of turn."""
    configured = getattr(loaded.model.generation_config, "eos_token_id", None)
    named = configured if isinstance(configured, list) else [configured]
    end = end_of_turn_id(loaded.tokenizer, loaded.masker.template if loaded.masker else None)
    return {token for token in (loaded.tokenizer.eos_token_id, end, *named) if token is not None}


class _Streamer:
    """What `generate` calls with each new token: passes on text once its characters are whole."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]) -> None:
        self._tokenizer = tokenizer
        self._on_text = on_text
        self._tokens: list[int] = []
        self._start = self._shown = 0
        self._prompt_seen = False
        self.first_at: float | None = None
        """When the first token was there, by the monotonic clock."""

    def put(self, value: Any) -> None:
        if not self._prompt_seen:  # the first call carries the prompt
            self._prompt_seen = True
            return
        self.take(value.reshape(-1).tolist())

    def take(self, tokens: list[int]) -> None:
        """The next tokens."""
        self.first_at = self.first_at or time.monotonic()
        self._tokens.extend(tokens)
        self._pass_on(whole=True)

    def end(self) -> None:
        self._pass_on(whole=False)

    def _pass_on(self, *, whole: bool) -> None:
        """Pass on what the new tokens add; only the tokens since the last but one piece are decoded again."""
        before, text = (
            self._decoded(self._tokens[self._start : self._shown]),
            self._decoded(self._tokens[self._start :]),
        )
        if (whole and text.endswith("�")) or len(text) <= len(before):
            return
        self._on_text(text[len(before) :])
        self._start, self._shown = self._shown, len(self._tokens)

    def _decoded(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text
