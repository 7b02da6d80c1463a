"""Names every problem in a recipe's data before the first step: counts with example rows, over the whole set."""

import sys
from array import array
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from tuitune.audit.findings import Example, Finding, Gathered
from tuitune.data.dataset import open_dataset
from tuitune.data.prepare import Prepared, Source, encode_row, first_parts, prepare
from tuitune.language import _, plural, reworded
from tuitune.masking import Masker
from tuitune.methods import method_of
from tuitune.model.config import load_tokenizer
from tuitune.recipe import Recipe
from tuitune.units import gib

PERCENTILES = (1, 5, 25, 50, 75, 95, 99, 100)
_BUCKETS = 7


@dataclass(frozen=True)
class Length:
    """A max_length that keeps `share` of the rows whole, and the memory a batch of it needs, where that is known."""

    share: float
    max_length: int
    memory_bytes: int | None

    def as_text(self) -> str:
        if self.memory_bytes is None:
            return _("max_length {tokens:,} keeps {share:.0%}", tokens=self.max_length, share=self.share)
        return _(
            "max_length {tokens:,} keeps {share:.0%} (about {memory})",
            tokens=self.max_length,
            share=self.share,
            memory=gib(self.memory_bytes),
        )


@dataclass(frozen=True)
class SourceCounts:
    """One dataset's part in the training data; token counts are after max_length and before `weight`."""

    name: str
    rows: int
    used: int
    held_out: int
    dropped: int
    tokens: int
    trained_tokens: int
    weight: float
    share: float = 1.0
    """Of all trained tokens, by weight."""

    def as_text(self) -> str:
        parts = [
            _("{used:,} of {rows:,} rows", used=self.used, rows=self.rows),
            *([_("{rows:,} of them held out", rows=self.held_out)] if self.held_out else []),
            _("{tokens:,} trained tokens", tokens=self.trained_tokens),
            _("taken {weight:g} times", weight=self.weight),
        ]
        return _("{name}: {parts}: {share:.0%} of the training", name=self.name, parts=parts, share=self.share)


@dataclass(frozen=True)
class Audit:
    """What training on a recipe's data would see. Token counts are before max_length, unless said otherwise."""

    rows: int
    used: int
    sources: list[SourceCounts]
    """Each dataset's part, in the recipe's order."""
    names: list[str]
    """Of all datasets by their place, the evaluation's last: what `examples` are told by."""
    dropped: dict[str, dict[str, Any]]
    """Reason to `text` (the same, in the reader's language), `count`, `examples` (like a finding's) and `first` (the
    first row's own words)."""
    tokens: int
    """Tokens that are trained on, after max_length."""
    trained_tokens: int
    trained_share: float
    token_percentiles: dict[int, int]
    length_histogram: list[tuple[int, int]]
    """Buckets of rows by length: the most tokens a row in it has, and how many rows. Where rows are cut, max_length is
    the end of a bucket; the last bucket holds all that are longer than usual."""
    trained_percentiles: dict[int, int]
    """Of trained tokens a row, after max_length."""
    truncated: int
    """Rows longer than max_length."""
    losing_end: int
    """Rows that lose the end of their last reply to max_length."""
    lengths: list[Length]
    findings: list[Finding]
    """Only what was found, the commonest first."""
    notices: list[str]
    """What the user should know of where replies begin and how the rows are kept, one sentence each."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def as_text(self) -> str:
        """For a person, several lines."""
        lines: list[str] = [
            _(
                "{used:,} of {rows:,} rows are used: {tokens:,} tokens, {trained:,} trained ({share:.0%})",
                used=self.used,
                rows=self.rows,
                tokens=self.tokens,
                trained=self.trained_tokens,
                share=self.trained_share,
            ),
            _(
                "tokens a row: {percentiles}",
                percentiles=[f"{value:,} ({at}%)" for at, value in self.token_percentiles.items()],
            ),
        ]
        if len(self.sources) > 1:
            lines += [source.as_text() for source in self.sources]
        if self.truncated:
            lines.append(
                plural(
                    "{count} row is longer than max_length, {losing} loses the end of the reply; {lengths}",
                    "{count:,} rows are longer than max_length, {losing:,} lose the end of the reply; {lengths}",
                    self.truncated,
                    losing=self.losing_end,
                    lengths=[length.as_text() for length in self.lengths],
                )
            )
        for reason, entry in self.dropped.items():
            lines.append(
                plural(
                    "{count} row is left out: {reason} ({examples})",
                    "{count:,} rows are left out: {reason} ({examples})",
                    entry["count"],
                    reason=reason,
                    examples=self._listed(entry["examples"]),
                )
            )
        for finding in self.findings:
            if finding.examples:
                where = self._listed(finding.examples) + self._alike(finding)
                text = plural(
                    "{count} row: {text} ({examples})",
                    "{count:,} rows: {text} ({examples})",
                    finding.count,
                    text=finding.text,
                    examples=where,
                )
            else:
                text = plural("{count} row: {text}", "{count:,} rows: {text}", finding.count, text=finding.text)
            lines.append(text)
        return "\n".join([*lines, *self.notices])

    def _alike(self, finding: Finding) -> str:
        """Which earlier row the first of the examples repeat."""
        pairs = list(zip(finding.examples, finding.like, strict=False))
        return "".join(
            _("; {row} is like {earlier}", row=self._name(row), earlier=self._name(earlier)) for row, earlier in pairs
        )

    def _name(self, example: Example) -> str:
        if len(self.names) == 1:
            return _("row {row}", row=example.row)
        return _("{file}: row {row}", file=self.names[example.source], row=example.row)

    def _listed(self, examples: list[Example]) -> str:
        rows: dict[int, list[str]] = {}
        for example in sorted(examples):
            rows.setdefault(example.source, []).append(str(example.row))
        return "; ".join(
            _("rows {rows}", rows=numbers)
            if len(self.names) == 1
            else _("{file}: rows {rows}", file=self.names[source], rows=numbers)
            for source, numbers in rows.items()
        )


def audit(
    recipe: Recipe,
    tokenizer: Any = None,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Audit:
    """Look at every row of the recipe's datasets. Raises UnusableInput where no row of them can be trained on.

    `progress` gets rows done, first of tokenising and then of looking, and where known their number. When `cancelled`
    turns true the findings so far are returned.
    """
    import numpy

    data = recipe.data.model_copy(update={"bad_rows": "skip"})
    recipe = recipe.model_copy(update={"data": data})
    open_dataset(data)  # what cannot be read is told before the tokenizer is loaded, which takes seconds
    tokenizer = tokenizer if tokenizer is not None else load_tokenizer(recipe.model)
    prepared = prepare(recipe, tokenizer, progress, cancelled)
    method = method_of(recipe)
    masker = Masker(tokenizer, method.train_on(recipe), data.max_length)
    unbounded = Masker(tokenizer, method.train_on(recipe), sys.maxsize)
    gathered = Gathered(masker, method.advice(recipe))
    lengths = array("I")
    sources: list[SourceCounts] = []
    losing_end = 0
    for source in prepared.sources:
        gathered.begin(source.dataset)
        rows, place, seen = source.rows, 0, 0
        expected = source.dataset.estimated_rows()
        for row in source.dataset:
            if cancelled():
                break
            seen += 1
            first = place
            while place < len(rows) and rows.numbers[place] == row.index:
                place += 1
            gathered.look(row, is_used=place > first)
            if place == first + 1 and rows.longest[first] < data.max_length:
                lengths.append(rows.longest[first])
            elif row.sample is not None:
                # Cut, split or left out: only these are tokenised once more, whole.
                whole_rows = encode_row(method, unbounded, row, "cut")
                if isinstance(whole_rows, str):
                    continue
                lengths.append(max(encoded.longest for encoded in whole_rows))
                losing_end += any(encoded.is_trained_beyond(data.max_length) for encoded in whole_rows)
            if seen % 1000 == 0:
                progress(seen, expected)
        progress(seen, seen)
        sources.append(_counts(source, seen))
    tokens, trained_tokens = sum(source.tokens for source in sources), sum(source.trained_tokens for source in sources)
    findings = gathered.all(prepared, data.max_length)
    del gathered  # of millions of rows the largest part
    whole = numpy.sort(numpy.frombuffer(lengths, dtype=numpy.uint32))
    trained = numpy.concatenate(
        [numpy.frombuffer(source.rows.trained, dtype=numpy.uint32) for source in prepared.sources]
    )
    weighted = [source.weight * source.trained_tokens for source in sources]
    longer = len(whole) - int(numpy.searchsorted(whole, data.max_length, side="right"))
    return Audit(
        rows=sum(source.rows for source in sources),
        used=sum(source.used for source in sources),
        sources=[
            replace(source, share=part / max(1, sum(weighted))) for source, part in zip(sources, weighted, strict=True)
        ],
        names=prepared.names,
        dropped=_dropped(prepared),
        tokens=tokens,
        trained_tokens=trained_tokens,
        trained_share=trained_tokens / max(1, tokens),
        token_percentiles=_percentiles(whole),
        length_histogram=histogram(whole, data.max_length),
        trained_percentiles=_percentiles(numpy.sort(trained)),
        truncated=longer,
        losing_end=losing_end,
        lengths=_wanted_lengths(recipe, whole) if longer else [],
        findings=findings,
        notices=prepared.notices,
    )


def _counts(source: Source, seen: int) -> SourceCounts:
    import numpy

    rows = source.rows
    return SourceCounts(
        name=source.name,
        rows=seen,
        used=int(numpy.count_nonzero(first_parts(rows))),
        held_out=len(source.held_out),
        dropped=sum(entry.count for entry in rows.dropped.values()),
        tokens=sum(rows.lengths),
        trained_tokens=sum(rows.trained),
        weight=source.weight,
    )


def _dropped(prepared: Prepared) -> dict[str, dict[str, Any]]:
    """By reason, over all datasets."""
    reasons: dict[str, dict[str, Any]] = {}
    for place, source in enumerate(prepared.sources):
        for reason, entry in source.rows.dropped.items():
            words = reworded(reason, entry.said)
            known = reasons.setdefault(words, {"text": words, "count": 0, "examples": [], "first": entry.words})
            known["count"] += entry.count
            known["examples"] += [Example(place, row) for row in entry.examples]
    return reasons


def _percentiles(ordered: Any) -> dict[int, int]:
    return {at: int(ordered[min(len(ordered) - 1, len(ordered) * at // 100)]) for at in PERCENTILES if len(ordered)}


def histogram(ordered: Any, max_length: int) -> list[tuple[int, int]]:
    """Even buckets of a sorted array up to its 99th percentile, then one to the longest: a few long rows do not
    flatten the rest.
    """
    import numpy

    if not len(ordered):
        return []
    usual, longest = int(ordered[len(ordered) * 99 // 100]), int(ordered[-1])
    end, parts = usual, _BUCKETS
    if max_length < longest:
        end, parts = max_length, max(1, _BUCKETS * max_length // max(usual, max_length))
    edges = sorted({edge for part in range(1, _BUCKETS + 1) if (edge := -(-end * part // parts)) < longest} | {longest})
    counts = numpy.diff(numpy.searchsorted(ordered, edges, side="right"), prepend=0)
    return list(zip(edges, counts.tolist(), strict=True))


def _wanted_lengths(recipe: Recipe, ordered: Any) -> list[Length]:
    lengths = []
    for share in (0.95, 0.99, 1.0):
        length = int(ordered[min(len(ordered) - 1, -(-len(ordered) * round(share * 100) // 100) - 1)])
        lengths.append(Length(share, length, _memory(recipe, length)))
    return lengths


def _memory(recipe: Recipe, max_length: int) -> int | None:
    """What training on batches of rows this long needs, by tuitune.plan.estimate."""
    from tuitune.backends import choose
    from tuitune.errors import TuituneError
    from tuitune.machine.hardware import chosen_gpu
    from tuitune.plan.memory import memory_of, shape_of

    tokens = max_length * recipe.train.per_device_train_batch_size
    try:
        card, backend = chosen_gpu(), choose(recipe).name
        needed = memory_of(
            recipe, shape_of(recipe), tokens, backend=backend, card_bytes=card.total_bytes if card else None
        )
        return needed.total_bytes
    except TuituneError:
        return None
