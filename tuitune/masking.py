"""Turns conversations into input_ids and labels: the one place that decides what is trained."""

import hashlib
import itertools
import json
import re
import sys
from collections.abc import Container, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

from tuitune.chat_template.named import require_template
from tuitune.chat_template.template import ChatTemplate, Rendered, Turn
from tuitune.conversation import Conversation, Message, Sample, UnusableRow
from tuitune.errors import UnusableInput
from tuitune.language import _

__all__ = ["Conversation", "Masked", "Masker", "Message", "Sample", "UnusableRow", "token_texts"]

IGNORED = -100
"""The label of a token that is not trained (PyTorch's `ignore_index`)."""


@dataclass(frozen=True, slots=True)
class Masked:
    """One row as the trainer takes it; `labels` holds the token's id where it is trained, else -100."""

    input_ids: list[int]
    labels: list[int]
    truncated: bool
    """Whether tokens beyond max_length were cut."""
    ended: bool = True
    """Whether every trained turn's end-of-turn token is trained."""

    @property
    def trained_tokens(self) -> int:
        return len(self.labels) - self.labels.count(IGNORED)


class Masker:
    """Masks rows for one tokenizer. Not safe for use from several threads at once.

    The ids are those of the rendered chat template, with two differences: text inside a message that spells a special
    token stays text, and no token reaches from the header into the reply (a reply that begins with a newline does not
    melt into the header's newline), as at inference, where the two are tokenised apart.
    """

    def __init__(
        self,
        tokenizer: Any,
        train_on: Literal["assistant", "last", "all"],
        max_length: int,
    ) -> None:
        """Raises UnusableInput for a tokenizer without a chat template or without a fast backend."""
        require_template(tokenizer)
        if not getattr(tokenizer, "is_fast", False):
            raise UnusableInput(
                "The tokenizer has no fast version (tokenizer.json): convert it with transformers first."
            )
        self.train_on = train_on
        self.max_length = max_length
        self.template = ChatTemplate(tokenizer)
        self._begin: str = tokenizer.bos_token or ""
        self._end: str = tokenizer.eos_token or ""
        backend = tokenizer.backend_tokenizer
        added = backend.get_added_tokens_decoder()
        self._backend = _twin(backend, [added[token_id] for token_id in sorted(added)])
        self._backend.post_processor = backend.post_processor
        specials = {token.content: token_id for token_id, token in added.items() if token.special}
        self._special_ids = frozenset(specials.values())
        self._special = re.compile("|".join(map(re.escape, sorted(specials, key=len, reverse=True))) or r"(?!)")
        self._openings = {special[:2] for special in specials}
        self._inner = {character for special in specials for character in special[:-1]}
        self._aliased: _Aliased | None = None

    def encode(self, messages: Conversation, tools: list[Any] | None = None) -> Masked:
        """Tokenise and label one conversation. Raises UnusableRow with the reason."""
        return self.encode_sample(Sample(messages, tools))

    def encode_sample(self, sample: Sample) -> Masked:
        """Tokenise and label one row of a dataset. Raises UnusableRow with the reason."""
        result = self.encode_batch([sample])[0]
        if isinstance(result, UnusableRow):
            raise result
        return result

    @property
    def identity(self) -> list[Any]:
        """All that decides the ids and labels of a row, but the row."""
        backend = hashlib.blake2b(self._backend.to_str().encode()).hexdigest()
        return [backend, self.template.source, self.template.variables, self.train_on, self.max_length]

    def encode_uncut(self, sample: Sample) -> Masked:
        """Like `encode_sample`, but never cut. Raises UnusableRow."""
        limit, self.max_length = self.max_length, sys.maxsize
        try:
            return self.encode_sample(sample)
        finally:
            self.max_length = limit

    def prompt_ids(self, messages: Conversation, tools: list[Any] | None = None, *, thinks: bool = False) -> list[int]:
        """The ids that stand before a reply to these messages in training: what to generate from after it.

        Some templates write more before a reply than their generation prompt does (an empty thinking block, a
        channel); a model that was trained behind it answers best behind it. One whose data `thinks` has learnt to begin
        behind the generation prompt alone. Raises UnusableRow.
        """
        stand_in: Message = {"role": "assistant", "content": "text"}
        messages = self.template.standard(messages)
        if thinks:
            text = self.template.text(messages, tools, prompt=True)
            contents = self.template.render([*messages, stand_in], tools).contents[:-1]
            rendered = Rendered(text, [], [(start, end) for start, end in contents if end <= len(text)])
            return self._aliases.encode(rendered, [])[0] if self._spelled(rendered) else self._tokenized([text])[0].ids
        train_on, self.train_on = self.train_on, "last"
        try:
            masked = self.encode_uncut(Sample([*messages, stand_in], tools))
        finally:
            self.train_on = train_on
        return masked.input_ids[: next(place for place, label in enumerate(masked.labels) if label != IGNORED)]

    def encode_batch(self, samples: list[Sample]) -> "list[Masked | UnusableRow]":
        """Tokenise and label rows of a dataset; a row that cannot be used becomes its UnusableRow."""
        return next(self.encode_batches([samples]))

    def encode_batches(self, batches: Iterable[list[Sample]]) -> "Iterator[list[Masked | UnusableRow]]":
        """`encode_batch` for each batch; the tokenizer works on all cores while the next batch is rendered."""
        with ThreadPoolExecutor(1) as tokenizing:
            pending: tuple[list[Rendered | UnusableRow], Future[list[Any]]] | None = None
            for samples in batches:
                rendered = [self._rendered(sample) for sample in samples]
                texts = [conversation.text for conversation in rendered if isinstance(conversation, Rendered)]
                earlier, pending = pending, (rendered, tokenizing.submit(self._tokenized, texts))
                if earlier:
                    yield self._labelled(earlier[0], earlier[1].result())
            if pending:
                yield self._labelled(pending[0], pending[1].result())

    def _tokenized(self, texts: list[str]) -> list[Any]:
        return list(self._backend.encode_batch(texts, add_special_tokens=False))

    def _labelled(self, rendered: "list[Rendered | UnusableRow]", encoded: list[Any]) -> "list[Masked | UnusableRow]":
        encodings = iter(encoded)
        results: list[Masked | UnusableRow] = []
        for row in rendered:
            if isinstance(row, UnusableRow):
                results.append(row)
                continue
            try:
                results.append(self._masked(row, next(encodings)))
            except UnusableRow as error:
                results.append(error)
        return results

    def _rendered(self, sample: Sample) -> "Rendered | UnusableRow":
        if sample.messages is None:
            return self._plain(sample.text or "")
        if not any(message["role"] == "assistant" for message in sample.messages) and self.train_on != "all":
            return UnusableRow(
                _("it has no assistant turn"),
                _("add a reply, map its column in data.columns, or set data.train_on to all"),
            )
        try:
            if any("weight" in message for message in sample.messages):
                return self._weighted(sample.messages, sample.tools)
            return self.template.render(sample.messages, sample.tools)
        except UnusableRow as error:
            return error

    def _weighted(self, messages: Conversation, tools: list[Any] | None) -> Rendered:
        """The rendered text with only the turns whose weight is not 0. Raises UnusableRow."""
        weights = [message.get("weight", 1) for message in messages if message["role"] == "assistant"]
        if not any(weights) and self.train_on != "all":
            raise UnusableRow(
                _("all its replies have the weight 0"), _("give those that are to be trained the weight 1")
            )
        plain = [message.copy() for message in messages]
        for message in plain:
            message.pop("weight", None)
        rendered = self.template.render(plain, tools)
        return replace(rendered, turns=[turn for turn, weight in zip(rendered.turns, weights, strict=True) if weight])

    def _plain(self, text: str) -> Rendered:
        """Text outside any chat: trained whole, between the tokenizer's begin and end tokens."""
        full_text = f"{self._begin}{text}{self._end}"
        begin = len(self._begin)
        return Rendered(full_text, [Turn(begin, len(full_text), bool(self._end))], [(begin, begin + len(text))])

    def _masked(self, rendered: Rendered, encoding: Any) -> Masked:
        turns = rendered.turns[-1:] if self.train_on == "last" else rendered.turns
        if self._spelled(rendered):
            ids, spans = self._aliases.encode(rendered, turns)
        else:
            ids = encoding.ids
            spans, cuts = _token_spans(encoding, rendered.text, turns, self._special_ids)
            if cuts:
                ids, spans = self._aliases.encode(rendered, turns)
        if self.train_on == "all":
            labels = list(ids)
        else:
            labels = [IGNORED] * len(ids)
            for start, end in spans:
                labels[start:end] = ids[start:end]
        truncated = len(ids) > self.max_length
        ended = all(turn.ended for turn in turns)
        if truncated:
            ended = ended and (not spans or spans[-1][1] <= self.max_length)
            ids, labels = ids[: self.max_length], labels[: self.max_length]
            if labels.count(IGNORED) == len(labels):
                raise UnusableRow(
                    _("all its trained tokens lie beyond max_length ({max_length})", max_length=self.max_length),
                    _("raise data.max_length, or set data.over_length to split"),
                    over_length=True,
                )
        return Masked(ids, labels, truncated, ended)

    def _spelled(self, rendered: Rendered) -> bool:
        """Whether a special token stands where a message's text takes part in spelling it."""
        text = rendered.text
        for start, end in rendered.contents:
            # Most text opens no special token, neither itself nor with what stands before it.
            if text[start - 1 : start] not in self._inner and all(
                text.find(opening, start, end + 1) < 0 for opening in self._openings
            ):
                continue
            matches = self._special.finditer(text, max(0, start - 64), min(len(text), end + 64))
            if any(match.start() < end and start < match.end() for match in matches):
                return True
        return False

    @property
    def _aliases(self) -> "_Aliased":
        if self._aliased is None:
            self._aliased = _Aliased(self._backend, self._special)
        return self._aliased


class _Aliased:
    """A twin of a tokenizer that knows its special tokens by private names only.

    Giving the template's own special tokens those names before tokenising leaves what a message spells as text, with
    every other property of the tokenizer (what a special token strips around it, prefix spaces) as it was.
    """

    def __init__(self, backend: Any, special: re.Pattern[str]) -> None:
        added = backend.get_added_tokens_decoder()
        self._special = special
        self._alias: dict[str, str] = {}
        own_ids: dict[str, int] = {}
        for token_id in sorted(added):
            token = added[token_id]
            if token.special:
                alias = f"\U000ffffd{len(self._alias):x}\U000ffffc"
                self._alias[token.content] = alias
                token.content = alias
            own_ids[token.content] = token_id
        tokens = [added[token_id] for token_id in sorted(added)]
        self._backend = _twin(backend, tokens)
        # Names that are not in the vocabulary get the next ids, before tokens that were added to it.
        self._id_of = {int(self._backend.token_to_id(name) or 0): token_id for name, token_id in own_ids.items()}
        self._special_ids = frozenset(int(self._backend.token_to_id(alias) or 0) for alias in self._alias.values())
        without = _without_prefix_space(backend)
        self._continuing = _twin(backend, tokens, without) if without else self._backend

    def encode(self, rendered: Rendered, turns: list[Turn]) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids and each turn's range of tokens, with no token across an edge of a turn."""
        text, moved = self._renamed(rendered)
        shifted = [Turn(moved(turn.start), moved(turn.end), turn.ended) for turn in turns]
        encoding = self._backend.encode(text, add_special_tokens=False)
        spans, cuts = _token_spans(encoding, text, shifted, self._special_ids)
        if not cuts:
            return [self._id_of.get(token_id, token_id) for token_id in encoding.ids], spans
        ids: list[int] = []
        ranges: list[tuple[int, int]] = []
        for start, end in itertools.pairwise([0, *cuts, len(text)]):
            # Text that continues across a cut gets no prefix space; what follows a special token is as it was.
            special = _ALIAS.search(text, start, end) if start else None
            middle = (special.start() if special else end) if start else start
            for backend, begin, end_at in ((self._continuing, start, middle), (self._backend, middle, end)):
                piece = backend.encode(text[begin:end_at], add_special_tokens=False)
                ranges += [(begin + a, begin + b) for a, b in piece.offsets]
                ids += [self._id_of.get(token_id, token_id) for token_id in piece.ids]
        return ids, [_overlapping(ranges, turn) for turn in shifted]

    def _renamed(self, rendered: Rendered) -> tuple[str, Any]:
        """The text with the template's own special tokens renamed, and the way from old to new positions."""
        from bisect import bisect_right

        parts: list[str] = []
        starts, shifts = [0], [0]
        at = shift = 0
        inside = iter([*rendered.contents, (len(rendered.text), len(rendered.text))])
        for start, end in inside:
            for match in self._special.finditer(rendered.text, at, start):
                alias = self._alias[match[0]]
                parts += (rendered.text[at : match.start()], alias)
                at = match.end()
                shift += len(alias) - len(match[0])
                starts.append(at)
                shifts.append(shift)
            parts.append(rendered.text[at:end])
            at = end
        return "".join(parts), lambda position: position + shifts[bisect_right(starts, position) - 1]


_ALIAS = re.compile("\U000ffffd[0-9a-f]+\U000ffffc")


def _twin(backend: Any, tokens: list[Any], steps: Any = None) -> Any:
    """Another tokenizer, which adds these tokens to the same model: that is shared, as a large one takes a second to
    copy. It neither truncates nor pads, and what it does before the model is what the tokenizer `steps` does."""
    from tokenizers import Tokenizer

    twin = Tokenizer(backend.model)
    # Before the tokens, as what they are found by is what the normalizer makes of them.
    twin.normalizer = (steps or backend).normalizer
    twin.pre_tokenizer = (steps or backend).pre_tokenizer
    twin.decoder = backend.decoder
    twin.add_tokens(tokens)
    return twin


def _without_prefix_space(backend: Any) -> Any | None:
    """A tokenizer without a vocabulary whose steps before the model are those of `backend`, except that they put no
    space before the text; None where they put none anyway."""
    from tokenizers import Tokenizer, models

    frame = Tokenizer(models.BPE())
    frame.normalizer, frame.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    before = frame.to_str()
    state = json.loads(before)
    for name, members in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        step = state[name] or {}
        steps = [part for part in step.get(members, [step]) if part.get("type") != "Prepend"]
        for part in steps:
            if part.get("type") == "Metaspace":
                part["prepend_scheme"] = "never"
            if part.get("type") == "ByteLevel":
                part["add_prefix_space"] = False
        if members in step:
            step[members] = steps
        elif not steps:
            state[name] = None
    return None if state == json.loads(before) else Tokenizer.from_str(json.dumps(state))


def _token_spans(
    encoding: Any, text: str, turns: list[Turn], special_ids: Container[int]
) -> tuple[list[tuple[int, int]], list[int]]:
    """Each turn's range of tokens, and the edges of turns that a token runs across.

    A word's leading space may stand before the reply (`[/INST] Hello`): such a token is the reply's. So is an end
    marker that swallows the white space behind it.
    """
    spans, cuts = [], []
    for turn in turns:
        first = _token_at(encoding, turn.start, turn.end, 1)
        last = _token_at(encoding, turn.end - 1, turn.start - 1, -1)
        if first is None or last is None:
            raise UnusableRow(_("the tokenizer makes no token of its reply"), _("write it in characters that it knows"))
        begin, end = encoding.token_to_chars(first)[0], encoding.token_to_chars(last)[1]
        if begin < turn.start and text[begin : turn.start] != " ":
            cuts.append(turn.start)
        if end > turn.end and encoding.ids[last] not in special_ids:
            cuts.append(turn.end)
        spans.append((first, last + 1))
    return spans, cuts


def _token_at(encoding: Any, start: int, stop: int, step: int) -> int | None:
    """The first token found going from character `start` towards `stop`; some characters belong to no token."""
    for position in range(start, stop, step):
        token: int | None = encoding.char_to_token(position)
        if token is not None:
            return token
    return None


def _overlapping(ranges: list[tuple[int, int]], turn: Turn) -> tuple[int, int]:
    inside = [i for i, (start, end) in enumerate(ranges) if start < turn.end and end > turn.start]
    return inside[0], inside[-1] + 1


def token_texts(tokenizer: Any, ids: list[int]) -> list[str]:
    """What each token adds to the decoded text; a character spread over several tokens stands at the last of them.

    Joined, they are the decoded text (the sliding window is that of text-generation-inference's streaming decoder).
    """

    def decode(part: list[int]) -> str:
        return str(tokenizer.decode(part, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    texts: list[str] = []
    prefix = read = 0
    for i in range(len(ids)):
        text_before, text_now = decode(ids[prefix:read]), decode(ids[prefix : i + 1])
        unfinished = text_now.endswith("\ufffd") and i + 1 - read < 8 and i + 1 < len(ids)
        if unfinished:
            texts.append("")
            continue
        texts.append(text_now[len(text_before) :])
        prefix, read = read, i + 1
    return texts
