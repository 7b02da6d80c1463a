"""Streaming replies from a loaded model, with the adapter on or off."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tuitune.backends.loaded import LoadedModel
from tuitune.chat_template.reply_start import prompt_as_trained
from tuitune.chat_template.turn_end import end_of_turn_id
from tuitune.conversation import Conversation, UnusableRow
from tuitune.errors import TuituneError, UnusableInput
from tuitune.recipe import field_errors
from tuitune.text import one_line


class Sampling(BaseModel):
    """How the next token is chosen; the defaults always take the likeliest one."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    temperature: float = Field(0.0, ge=0, le=10)
    """0 takes the likeliest token; higher values vary more."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Choose among the likeliest tokens that together have this probability."""
    min_p: float = Field(0.0, ge=0, le=1)
    """Leave out tokens less likely than this share of the likeliest one."""
    top_k: int = Field(0, ge=0)
    """Choose among this many likeliest tokens; 0 sets no limit."""
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    """Above 1, tokens that were said before become less likely (Keskar et al. 2019)."""
    max_new_tokens: int = Field(512, ge=1, le=131_072)
    """Longest reply in tokens."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Start of the random choice: the same seed gives the same reply."""

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> "Sampling":
        """Raises UnusableInput naming the field."""
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise UnusableInput(
                f"The sampling settings cannot be used: {'; '.join(field_errors(error, cls).values())}."
            ) from None


@dataclass(frozen=True)
class ChatReply:
    """A reply; `ended` is False where it was stopped or reached `max_new_tokens`."""

    text: str
    tokens: int
    seconds: float
    ended: bool


def reply(
    loaded: LoadedModel,
    messages: Conversation,
    sampling: Sampling,
    *,
    adapter: bool = True,
    on_text: Callable[[str], None] = lambda text: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> ChatReply:
    """The model's next message; pieces of text go to `on_text` as they come.

    With `adapter` False the base model answers. `cancelled` is asked after each token. Raises TuituneError where the
    tokenizer's chat template refuses the messages.
    """
    import torch

    tokenizer, model = loaded.tokenizer, loaded.model
    prompt = prompt_ids(loaded, messages)
    length = len(prompt)
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    room = sampling.max_new_tokens if limit is None else min(sampling.max_new_tokens, limit - length)
    if room < 1:
        raise TuituneError(f"The prompt fills the model's {limit} tokens: shorten it, or clear the history.")
    ends = _end_tokens(loaded)
    choice: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if sampling.temperature > 0:
        choice = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or 0,
            "min_p": sampling.min_p or None,
        }
        torch.manual_seed(sampling.seed)
    loaded.backend.for_inference(loaded)
    off = contextlib.nullcontext() if adapter or not hasattr(model, "disable_adapter") else model.disable_adapter()
    started = time.monotonic()
    with off, torch.inference_mode():
        output = model.generate(
            input_ids=torch.tensor([prompt], device=model.device),
            attention_mask=torch.ones(1, length, dtype=torch.long, device=model.device),
            **choice,
            repetition_penalty=sampling.repetition_penalty,
            max_new_tokens=room,
            eos_token_id=sorted(ends),
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends),
            streamer=_Streamer(tokenizer, on_text),
            stopping_criteria=[lambda ids, scores, **_: torch.full((len(ids),), cancelled(), device=ids.device)],
        )
    new = output[0, length:].tolist()
    text = tokenizer.decode(new, skip_special_tokens=True).strip()
    return ChatReply(text, len(new), time.monotonic() - started, bool(new) and new[-1] in ends)


def loading_text(loading: str, done: int | None, total: int | None) -> str:
    """What a session's `loading` part says, on one line: `Loading the model's weights, 120 of 290`."""
    text = one_line(loading, max_length=100)
    return f"{text}, {done:,} of {total:,}" if total else text


def prompt_ids(loaded: LoadedModel, messages: Conversation) -> list[int]:
    """The ids that a reply to these messages is generated from: those that stood before a reply in training.

    Some templates write more before a reply than their generation prompt does, such as an empty thinking block. A
    model whose data brings its own thinking has learnt to begin there, and gets the generation prompt alone. Raises
    TuituneError where the template refuses the messages.
    """
    from tuitune.masking import Masker

    if loaded.masker is None:
        loaded.masker = Masker(loaded.tokenizer, "last", loaded.recipe.data.max_length)
    template = loaded.masker.template
    try:
        if not loaded.thinks:
            before: list[int] = loaded.masker.prompt_ids(template.standard(messages))
            return before
        text = prompt_as_trained(template, messages, thinks=True)
    except UnusableRow as error:
        raise TuituneError(f"The model cannot answer this conversation, because {error}.") from error
    ids: list[int] = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _end_tokens(loaded: LoadedModel) -> set[int]:
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
        self._shown = 0
        self._prompt_seen = False

    def put(self, value: Any) -> None:
        if not self._prompt_seen:  # the first call carries the prompt
            self._prompt_seen = True
            return
        self._tokens.extend(value.reshape(-1).tolist())
        text = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        if not text.endswith("�"):
            self._pass_on(text)

    def end(self) -> None:
        self._pass_on(self._tokenizer.decode(self._tokens, skip_special_tokens=True))

    def _pass_on(self, text: str) -> None:
        if len(text) > self._shown:
            self._on_text(text[self._shown :])
            self._shown = len(text)
