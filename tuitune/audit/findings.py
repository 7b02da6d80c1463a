"""Gathers what is worth knowing of each row, in bounded memory, and names it: counts with example rows."""

import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tuitune.data import content
from tuitune.data.dataset import Dataset, Row
from tuitune.data.digest import BANDS, among, bands, digest, prompt_digest, repeats
from tuitune.data.formats import TURN_ROLES
from tuitune.data.prepare import Prepared, first_parts
from tuitune.data.turns import TURN_FIELDS
from tuitune.language import _
from tuitune.masking import Masker
from tuitune.methods.advice import Advice
from tuitune.text import one_line

EXAMPLES = 5
KINDS = 200
"""Different findings that are kept; a hostile file may have a column of its own in each row."""


# Columns that number or name a row, which nobody wants a model to see.
_IS_ID = re.compile(r"(^|[_\W])(?i:id|ids|idx|index|uuid|guid|hash|md5|sha\d+)$|[a-z](Id|ID)$")


class Example(NamedTuple):
    """A row that shows a problem: its dataset's place among the recipe's, from 0 (the evaluation's is last), and its
    number, from 1.
    """

    source: int
    row: int


@dataclass
class Finding:
    """One kind of problem: a stable `name`, a `text` (what: what to do), how many rows, and the first few of each
    dataset; of rows that repeat others, `like` has for each of `examples` the earlier one.
    """

    name: str
    text: str
    count: int = 0
    examples: list[Example] = field(default_factory=list)
    like: list[Example] = field(default_factory=list)

    def add(self, index: int, source: int, count: int = 1) -> None:
        """Take in the row at `index`, from 0."""
        self.count += count
        if sum(example.source == source for example in self.examples) < EXAMPLES:
            self.examples.append(Example(source, index + 1))


class Gathered:
    """What one reading of the rows gathers: 32 bytes of digests for each row that is used, and counts with examples."""

    def __init__(self, masker: Masker, advice: Advice) -> None:
        """`advice` is what the method looks at."""
        self._advice = advice
        self._keeps_thinking = {inline: masker.template.keeps_thinking(inline=inline) for inline in (True, False)}
        self.found: dict[str, Finding] = {}
        self._scripts: Counter[frozenset[str]] = Counter()
        self._script_rows: dict[frozenset[str], list[Example]] = {}
        self._source = -1
        self._prompts = array("Q")
        self._bands = array("Q")
        self._seen = 0

    def begin(self, dataset: Dataset) -> None:
        """The rows that follow are this dataset's."""
        self._source += 1
        columns = dataset.format.columns
        self._columns = frozenset(columns.values())
        self._turn_columns = [columns[role] for role in TURN_ROLES if role in columns]

    def _note(self, name: str, text: str, row: int) -> None:
        if name in self.found or len(self.found) < KINDS:
            self.found.setdefault(name, Finding(name, text)).add(row, self._source)

    def look(self, row: Row, *, is_used: bool) -> None:
        """Take in one row of the dataset that was begun last; only a row that `is_used` can repeat another one."""
        if row.sample is None:
            return
        for name in (row.raw or {}).keys() - self._columns if self._advice.replies else ():
            if _IS_ID.search(name):
                continue
            shown = one_line(name, max_length=40)
            text = _("the column {name} is not used: map it in data.columns if the model should see it", name=shown)
            self._note(f"unused column {shown}", text, row.index)
        for name in self._unused_fields(row.raw or {}):
            shown = one_line(name, max_length=40)
            text = _(
                "the field {name} of a turn is not used: put it into the content if the model should see it", name=shown
            )
            self._note(f"unused field {shown}", text, row.index)
        messages = row.sample.messages
        if messages is not None and self._advice.replies:
            if not any(message["role"] == "assistant" for message in messages):
                self._note("no reply", _("there is no assistant turn: add a reply, or take the row out"), row.index)
            if content.has_empty_reply(messages):
                text = _("a reply is empty or only white space: write it, or take the row out")
                self._note("empty reply", text, row.index)
            if any(not self._keeps_thinking[inline] for inline in content.thinking(messages)):
                text = _(
                    "the chat template leaves out the thinking before a reply: choose a model that thinks to train it"
                )
                self._note("thinking left out", text, row.index)
            if role_problem := content.role_problem(messages):
                problem, remedy = role_problem
                text = _("the order of turns ({problem}): {remedy}", problem=problem, remedy=remedy)
                self._note(f"roles: {problem.english}", text, row.index)
        for remark in self._advice.look(row.sample):
            self._note(remark.name, remark.text, row.index)
        text_of_row = "\n".join(content.texts(row.sample))
        for kind in content.secrets(text_of_row):
            text = _("there seems to be a secret ({kind}): take it out, for the model may repeat it", kind=_(kind))
            self._note(f"secret: {kind}", text, row.index)
        if content.is_mojibake(text_of_row):
            text = _(
                "text was read in a wrong encoding (such as Ã© for é): make the file again from its source, as UTF-8"
            )
            self._note("mojibake", text, row.index)
        if content.has_invisible(text_of_row):
            text = _("there are control or invisible characters: take them out unless they are meant")
            self._note("invisible characters", text, row.index)
        written = content.scripts(text_of_row)
        self._scripts[written] += 1
        rows = self._script_rows.setdefault(written, [])
        if len(rows) < EXAMPLES:
            rows.append(Example(self._source, row.index + 1))
        self._seen += 1
        if is_used:
            self._prompts.append(prompt_digest(row.sample))
            # A system message that all rows share does not make them alike.
            texts = (text for turn in messages or [] if turn["role"] != "system" for text in content.texts_of(turn))
            self._bands.extend(bands(text_of_row if messages is None else "\n".join(texts)))

    def _unused_fields(self, raw: dict[str, Any]) -> set[str]:
        turns = [turn for column in self._turn_columns if isinstance(raw.get(column), list) for turn in raw[column]]
        return {name for turn in turns if isinstance(turn, dict) for name in turn.keys() - TURN_FIELDS}

    def all(self, prepared: Prepared, max_length: int) -> list[Finding]:
        """Every finding, the commonest first; none before a row was looked at."""
        if not self._seen or not any(map(len, (source.rows for source in prepared.sources))):
            return []
        findings = [*self.found.values(), *self._repeated(prepared), *self._unusual_scripts()]
        findings += [Finding(remark.name, remark.text, remark.rows) for remark in self._advice.all()]
        if prepared.eval_source is not None:
            findings += self._in_evaluation(prepared)
        findings += _lengths(prepared, max_length) if self._advice.replies else []
        return sorted((finding for finding in findings if finding.count), key=lambda finding: -finding.count)

    def _repeated(self, prepared: Prepared) -> Iterator[Finding]:
        """Exact and near duplicates, and held-out rows of which the training data holds the prompt."""
        import numpy

        used_rows = _Used(prepared, len(self._prompts))
        digests = used_rows.digests()
        exact = repeats(digests)
        is_near = numpy.zeros(len(exact), dtype=bool)
        grouped = numpy.frombuffer(self._bands, dtype=numpy.uint64).reshape(-1, BANDS)
        for column in range(BANDS):
            is_near |= repeats(grouped[:, column])
        yield used_rows.marked(
            "duplicate", _("the same as an earlier row: take it out, or it counts twice"), exact, [digests]
        )
        text = _("nearly the same as an earlier row: see whether both are wanted")
        columns = [grouped[:, column] for column in range(BANDS)]
        yield used_rows.marked("near duplicate", text, is_near & ~exact, columns)
        is_held_out = used_rows.is_held_out()
        prompts = numpy.frombuffer(self._prompts, dtype=numpy.uint64)
        is_held_out[is_held_out] = among(prompts[is_held_out], prompts, ~is_held_out)
        text = _("held out, but the training data has the same prompt: take one out, or the held-out loss is too good")
        yield used_rows.marked("leak", text, is_held_out)

    def _in_evaluation(self, prepared: Prepared) -> list[Finding]:
        """Rows of data.eval_path or data.eval_split that the training data holds, whole or in their prompt."""
        import numpy

        assert prepared.eval_source is not None
        dataset = prepared.eval_source.dataset
        same = Finding(
            "in evaluation",
            _("of {file} also in the training data, so not measured on: take them out of either", file=dataset.name),
        )
        prompt = Finding(
            "leak to evaluation",
            _(
                "of {file} whose prompt is also in the training data: take them out of either, or the held-out loss "
                "is too good",
                file=dataset.name,
            ),
        )
        numbers, digests, prompts = array("q"), array("Q"), array("Q")
        for row in dataset:
            if row.sample is not None:
                numbers.append(row.index)
                digests.append(digest(row.sample))
                prompts.append(prompt_digest(row.sample))
        trained = _Used(prepared, len(self._prompts)).digests()
        in_whole = among(numpy.frombuffer(digests, dtype=numpy.uint64), trained)
        known = numpy.frombuffer(self._prompts, dtype=numpy.uint64)
        in_prompt = among(numpy.frombuffer(prompts, dtype=numpy.uint64), known) & ~in_whole
        for finding, is_marked in ((same, in_whole), (prompt, in_prompt)):
            for place in is_marked.nonzero()[0].tolist():
                finding.add(numbers[place], len(prepared.sources))
        return [same, prompt]

    def _unusual_scripts(self) -> list[Finding]:
        """Rows in writing systems that hardly any other row uses."""
        total = sum(self._scripts.values())

        def rows_with(script: str) -> int:
            return sum(count for written, count in self._scripts.items() if script in written)

        usual = {script for script in content.SCRIPTS if rows_with(script) >= 0.01 * total}
        findings: dict[str, Finding] = {}
        for written, count in self._scripts.items():
            for script in written - usual:
                text = _("{script} letters, which few rows have: see whether they belong here", script=_(script))
                entry = findings.setdefault(script, Finding(f"script: {script}", text))
                entry.count += count
                for example in sorted(self._script_rows[written]):
                    entry.add(example.row - 1, example.source, count=0)
        return list(findings.values())


class _Used:
    """The rows that are used, each once (a row that is split counts as its first part), of all datasets in order."""

    def __init__(self, prepared: Prepared, count: int) -> None:
        """Of the first `count` such rows: looking may have been cancelled on the way."""
        import numpy

        self._sources = prepared.sources
        self._first = []
        for source in prepared.sources:
            first = first_parts(source.rows)
            rows = int(numpy.count_nonzero(first))
            if rows > count:
                first[numpy.flatnonzero(first)[count:]] = False
            count = max(0, count - rows)
            self._first.append(first)

    def digests(self) -> Any:
        import numpy

        digests = [numpy.frombuffer(source.rows.digests, dtype=numpy.uint64) for source in self._sources]
        # Millions of digests are copied only where some are left out.
        chosen = [
            of_source if first.all() else of_source[first]
            for of_source, first in zip(digests, self._first, strict=True)
        ]
        return chosen[0] if len(chosen) == 1 else numpy.concatenate(chosen)

    def is_held_out(self) -> Any:
        """Whether each was held out for measuring."""
        import numpy

        marks = []
        for source, first in zip(self._sources, self._first, strict=True):
            is_held_out = numpy.zeros(len(first), dtype=bool)
            if source.held_out:
                numbers = numpy.frombuffer(source.rows.numbers, dtype=numpy.int64)
                is_held_out[numpy.searchsorted(numbers, source.held_out)] = True
            marks.append(is_held_out[first])
        return numpy.concatenate(marks)

    def marked(self, name: str, text: str, is_marked: Any, keys: Sequence[Any] = ()) -> Finding:
        """The finding of the rows that `is_marked` (bool, one a row) marks.

        With `keys` (uint64, one a row) a marked row is like the first one before it that has an equal key.
        """
        import numpy

        finding = Finding(name, text, count=int(numpy.count_nonzero(is_marked)))
        begin = 0
        for first in self._first:
            end = begin + int(numpy.count_nonzero(first))
            for place in (begin + is_marked[begin:end].nonzero()[0][:EXAMPLES]).tolist():
                finding.examples.append(self._example(place))
                earlier = [at[0] for key in keys if len(at := (key[:place] == key[place]).nonzero()[0])]
                finding.like += [self._example(int(min(earlier)))] if earlier else []
            begin = end
        return finding

    def _example(self, place: int) -> Example:
        """The row at `place` among all that are used."""
        import numpy

        for number, (source, first) in enumerate(zip(self._sources, self._first, strict=True)):
            row_count = int(numpy.count_nonzero(first))
            if place < row_count:
                return Example(number, source.rows.numbers[numpy.flatnonzero(first)[place]] + 1)
            place -= row_count
        raise IndexError(place)


def _lengths(prepared: Prepared, max_length: int) -> list[Finding]:
    """Rows whose replies never end, and rows far shorter or longer than the others."""
    endless = Finding(
        "never ends",
        _(
            "no end-of-turn token is trained, so the reply is never taught to end: choose a model whose chat template "
            "writes one after each reply"
        ),
    )
    short = Finding("very short", _("at most 2 tokens are trained: see whether the reply is whole"))
    long = Finding("very long", _("far more tokens are trained than in most rows: see whether it is one row"))
    import numpy

    counts = [numpy.frombuffer(source.rows.trained, dtype=numpy.uint32) for source in prepared.sources]
    ordered = numpy.sort(numpy.concatenate(counts))
    quarter, three_quarters = int(ordered[len(ordered) // 4]), int(ordered[len(ordered) * 3 // 4])
    limit = three_quarters + 5 * max(three_quarters - quarter, three_quarters // 2)
    for place, (source, trained) in enumerate(zip(prepared.sources, counts, strict=True)):
        rows = source.rows
        ended = numpy.frombuffer(rows.ended, dtype=numpy.uint8)
        lengths = numpy.frombuffer(rows.lengths, dtype=numpy.uint32)
        for finding, is_marked in (
            (endless, (ended == 0) & (lengths < max_length)),
            (short, trained <= 2),
            (long, trained > limit),
        ):
            finding.count += int(is_marked.sum())
            for row in is_marked.nonzero()[0][:EXAMPLES].tolist():
                finding.add(rows.numbers[row], place, count=0)
    return [endless, short, long]
