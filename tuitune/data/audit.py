"""Names every problem in a recipe's data before the first step: counts with example rows, over the whole set."""

from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from tuitune.data import content
from tuitune.data.dataset import Row
from tuitune.data.digest import bands, digest, loose_digest, prompt_digest
from tuitune.data.prepare import Prepared, prepare
from tuitune.masking import IGNORED, Masker, UnusableRow
from tuitune.model import load_tokenizer
from tuitune.recipe import Recipe
from tuitune.text import one_line

EXAMPLES = 5
KINDS = 200
"""Different findings that are kept; a hostile file may have a column of its own in each row."""
PERCENTILES = (1, 5, 25, 50, 75, 95, 99, 100)


@dataclass
class Finding:
    """One kind of problem: a stable `name`, a sentence, how many rows, and the first few row numbers (from 0)."""

    name: str
    text: str
    count: int = 0
    examples: list[int] = field(default_factory=list)

    def add(self, row: int) -> None:
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(row)


@dataclass(frozen=True)
class Length:
    """A max_length that keeps `share` of the rows whole, and the memory a batch of it needs, where that is known."""

    share: float
    max_length: int
    memory_bytes: int | None

    def as_text(self) -> str:
        needed = "" if self.memory_bytes is None else f" (about {self.memory_bytes / 2**30:.1f} GiB)"
        return f"max_length {self.max_length:,} keeps {self.share:.0%}{needed}"


@dataclass(frozen=True)
class Audit:
    """What training on a recipe's data would see. Token counts are before max_length, unless said otherwise."""

    rows: int
    used: int
    dropped: dict[str, dict[str, Any]]
    """Reason to `count`, `examples` (row numbers) and `first` (the first row's own words)."""
    tokens: int
    """Tokens that are trained on, after max_length."""
    trained_tokens: int
    trained_share: float
    token_percentiles: dict[int, int]
    trained_percentiles: dict[int, int]
    """Of trained tokens a row, after max_length."""
    truncated: int
    """Rows longer than max_length."""
    losing_end: int
    """Rows that lose the end of their last reply to max_length."""
    lengths: list[Length]
    findings: list[Finding]
    """Only what was found, the commonest first."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def as_text(self) -> str:
        """For a person, several lines."""
        lines = [
            f"{self.used:,} of {self.rows:,} rows are used: {self.tokens:,} tokens, "
            f"{self.trained_tokens:,} trained ({self.trained_share:.0%})",
            "tokens a row: " + ", ".join(f"{value:,} ({at}%)" for at, value in self.token_percentiles.items()),
        ]
        if self.truncated:
            lines.append(
                f"{self.truncated:,} rows are longer than max_length, {self.losing_end:,} lose the end of the reply; "
                + ", ".join(each.as_text() for each in self.lengths)
            )
        for reason, entry in self.dropped.items():
            lines.append(f"{entry['count']:,} rows are left out: {reason} (rows {_listed(entry['examples'])})")
        lines += [f"{each.count:,} rows: {each.text} (rows {_listed(each.examples)})" for each in self.findings]
        return "\n".join(lines)


def _listed(rows: list[int]) -> str:
    return ", ".join(map(str, rows))


class _Pass:
    """What one reading of the rows gathers, in bounded memory: 64-bit digests, and counts with examples."""

    def __init__(self, used_columns: set[str], masker: Masker) -> None:
        self._keeps_thinking = {inline: masker.template.keeps_thinking(inline=inline) for inline in (True, False)}
        self.rows = 0
        self.found: dict[str, Finding] = {}
        self.scripts: Counter[frozenset[str]] = Counter()
        self.script_rows: dict[frozenset[str], list[int]] = {}
        self.numbers = array("q")
        self.exact = array("Q")
        self.loose = array("Q")
        self.prompts = array("Q")
        self.bands = array("Q")
        self._used_columns = used_columns

    def note(self, name: str, text: str, row: int) -> None:
        if name in self.found or len(self.found) < KINDS:
            self.found.setdefault(name, Finding(name, text)).add(row)

    def look(self, row: Row) -> None:
        self.rows += 1
        if row.sample is None:
            return
        for name in (row.raw or {}).keys() - self._used_columns:
            shown = one_line(name, max_length=40)
            self.note(f"unused column {shown}", f"the column {shown} is not used", row.index)
        messages = row.sample.messages
        if messages is not None:
            if not any(message["role"] == "assistant" for message in messages):
                self.note("no reply", "there is no assistant turn", row.index)
            if content.has_empty_reply(messages):
                self.note("empty reply", "a reply is empty or only white space", row.index)
            if any(not self._keeps_thinking[inline] for inline in content.thinking(messages)):
                self.note("thinking left out", "the chat template leaves out what is thought before a reply", row.index)
            if problem := content.role_problem(messages):
                self.note(f"roles: {problem}", f"the order of turns: {problem}", row.index)
        whole = "\n".join(content.texts(row.sample))
        for kind in content.secrets(whole):
            self.note(f"secret: {kind}", f"there seems to be a secret: {kind}", row.index)
        if content.is_mojibake(whole):
            self.note("mojibake", "text was read in a wrong encoding (such as Ã© for é)", row.index)
        if content.has_invisible(whole):
            self.note("invisible characters", "there are control or invisible characters", row.index)
        written = content.scripts(whole)
        self.scripts[written] += 1
        self.script_rows.setdefault(written, [])
        if len(self.script_rows[written]) < EXAMPLES:
            self.script_rows[written].append(row.index)
        self.numbers.append(row.index)
        self.exact.append(digest(row.sample))
        self.loose.append(loose_digest(row.sample))
        self.prompts.append(prompt_digest(row.sample))
        self.bands.extend(bands(whole))


def audit(
    recipe: Recipe,
    tokenizer: Any = None,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Audit:
    """Look at every row of the recipe's first dataset. Raises UnusableInput where no row of it can be trained on.

    `progress` gets rows done, first of tokenising and then of looking, and where known their number. When `cancelled`
    turns true the findings so far are returned.
    """
    data = recipe.data.model_copy(update={"also": [], "bad_rows": "skip", "weight": 1.0})
    recipe = recipe.model_copy(update={"data": data})
    tokenizer = tokenizer if tokenizer is not None else load_tokenizer(recipe.model)
    prepared = prepare(recipe, tokenizer, progress, cancelled)
    masker = Masker(tokenizer, data.train_on, data.max_length)
    rows = prepared.rows
    gathered = _Pass(set(prepared.dataset.format.columns.values()), masker)
    lengths = array("I")
    losing_end = place = 0
    expected = prepared.dataset.estimated_rows()
    for row in prepared.dataset:
        if cancelled():
            break
        gathered.look(row)
        first = place
        while place < len(rows) and rows.numbers[place] == row.index:
            place += 1
        if place == first + 1 and rows.lengths[first] < data.max_length:
            lengths.append(rows.lengths[first])
        elif row.sample is not None:
            # Cut, split or left out: only these are tokenised once more, whole.
            try:
                labels = masker.whole(row.sample).labels
            except UnusableRow:
                continue
            lengths.append(len(labels))
            losing_end += any(label != IGNORED for label in labels[data.max_length :])
        if gathered.rows % 1000 == 0:
            progress(gathered.rows, expected)
    progress(gathered.rows, gathered.rows)
    findings = [*gathered.found.values(), *_repeated(gathered, prepared), *_scripts(gathered)]
    findings += _lengths(prepared, data.max_length)
    longer = sum(length > data.max_length for length in lengths)
    return Audit(
        rows=gathered.rows,
        used=len(set(rows.numbers)),
        dropped={reason: asdict(entry) for reason, entry in prepared.dropped.items()},
        tokens=sum(rows.lengths),
        trained_tokens=sum(rows.trained),
        trained_share=sum(rows.trained) / max(1, sum(rows.lengths)),
        token_percentiles=_percentiles(lengths),
        trained_percentiles=_percentiles(rows.trained),
        truncated=longer,
        losing_end=losing_end,
        lengths=_wanted_lengths(recipe, lengths) if longer else [],
        findings=sorted(findings, key=lambda finding: -finding.count),
    )


def _percentiles(values: "array[int]") -> dict[int, int]:
    ordered = sorted(values)
    return {at: ordered[min(len(ordered) - 1, len(ordered) * at // 100)] for at in PERCENTILES} if ordered else {}


def _wanted_lengths(recipe: Recipe, lengths: "array[int]") -> list[Length]:
    ordered = sorted(lengths)
    found = []
    for share in (0.95, 0.99, 1.0):
        wanted = ordered[min(len(ordered) - 1, -(-len(ordered) * round(share * 100) // 100) - 1)]
        found.append(Length(share, wanted, _memory(recipe, wanted)))
    return found


def _memory(recipe: Recipe, max_length: int) -> int | None:
    """What training on batches of rows this long needs, by tuitune.estimate."""
    from tuitune.backends import choose
    from tuitune.errors import TuituneError
    from tuitune.estimate import memory_of, shape_of
    from tuitune.hardware import chosen_gpu

    tokens = max_length * recipe.train.per_device_train_batch_size
    try:
        card, backend = chosen_gpu(), choose(recipe).name
        needed = memory_of(
            recipe, shape_of(recipe), tokens, backend=backend, card_bytes=card.total_bytes if card else None
        )
        return needed.total_bytes
    except TuituneError:
        return None


def _repeated(gathered: _Pass, prepared: Prepared) -> list[Finding]:
    """Exact and near duplicates, and held-out rows of which the training data holds the prompt."""
    import numpy

    numbers = numpy.frombuffer(gathered.numbers, dtype=numpy.int64)
    exact = _again(numpy.frombuffer(gathered.exact, dtype=numpy.uint64))
    near = _again(numpy.frombuffer(gathered.loose, dtype=numpy.uint64))
    grouped = numpy.frombuffer(gathered.bands, dtype=numpy.uint64).reshape(len(numbers), -1)
    for column in range(grouped.shape[1]):
        near |= _again(grouped[:, column])
    near &= ~exact
    leaking = numpy.zeros(len(numbers), dtype=bool)
    if prepared.eval_rows:
        prompts = numpy.frombuffer(gathered.prompts, dtype=numpy.uint64)
        held = numpy.isin(numbers, prepared.eval_rows)
        leaking = held & numpy.isin(prompts, prompts[~held])
    kinds = {
        "duplicate": ("the same as an earlier row", exact),
        "near duplicate": ("nearly the same as an earlier row", near),
        "leak": ("held out, but the training data has the same prompt", leaking),
    }
    return [
        Finding(name, text, int(which.sum()), numbers[which][:EXAMPLES].tolist())
        for name, (text, which) in kinds.items()
        if which.any()
    ]


def _again(values: Any) -> Any:
    """Whether each value stood at an earlier place."""
    import numpy

    first = numpy.zeros(len(values), dtype=bool)
    first[numpy.unique(values, return_index=True)[1]] = True
    return ~first


def _scripts(gathered: _Pass) -> list[Finding]:
    """Rows in writing systems that hardly any other row uses."""
    total = sum(gathered.scripts.values())
    usual = {script for script in content.SCRIPTS if _share_with(gathered, script) >= 0.01 * total}
    found: dict[str, Finding] = {}
    for written, count in gathered.scripts.items():
        for script in written - usual:
            entry = found.setdefault(script, Finding(f"script: {script}", f"{script} letters, which few rows have"))
            entry.count += count
            entry.examples = sorted(entry.examples + gathered.script_rows[written])[:EXAMPLES]
    return list(found.values())


def _share_with(gathered: _Pass, script: str) -> int:
    return sum(count for written, count in gathered.scripts.items() if script in written)


def _lengths(prepared: Prepared, max_length: int) -> list[Finding]:
    """Rows whose replies never end, and rows far shorter or longer than the others."""
    rows = prepared.rows
    endless = Finding("never ends", "no end-of-turn token is trained, so the reply is never taught to end")
    short = Finding("very short", "at most 2 tokens are trained")
    long = Finding("very long", "far more tokens are trained than in most rows")
    ordered = sorted(rows.trained)
    quarter, three_quarters = ordered[len(ordered) // 4], ordered[len(ordered) * 3 // 4]
    limit = three_quarters + 5 * max(three_quarters - quarter, three_quarters // 2)
    for number, trained, ended, length in zip(rows.numbers, rows.trained, rows.ended, rows.lengths, strict=True):
        if not ended and length < max_length:
            endless.add(number)
        if trained <= 2:
            short.add(number)
        if trained > limit:
            long.add(number)
    return [finding for finding in (endless, short, long) if finding.count]
