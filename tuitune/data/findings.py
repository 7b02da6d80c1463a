"""Gathers what is worth knowing of each row, in bounded memory, and names it: counts with example rows."""

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tuitune.data import content
from tuitune.data.dataset import Dataset, Row
from tuitune.data.digest import bands, digest, loose_digest, prompt_digest
from tuitune.data.formats import TURN_FIELDS, TURN_ROLES
from tuitune.data.prepare import Prepared
from tuitune.masking import Masker
from tuitune.text import one_line

EXAMPLES = 5
KINDS = 200
"""Different findings that are kept; a hostile file may have a column of its own in each row."""


@dataclass
class Finding:
    """One kind of problem: a stable `name`, a `text` (what: what to do), how many rows, and the first few row numbers
    (from 0).

    `examples` are rows of the recipe's first dataset; `elsewhere` has those of others by the dataset's name.
    """

    name: str
    text: str
    count: int = 0
    examples: list[int] = field(default_factory=list)
    elsewhere: dict[str, list[int]] = field(default_factory=dict)

    def add(self, row: int, source: str | None = None, count: int = 1) -> None:
        self.count += count
        rows = self.examples if source is None else self.elsewhere.setdefault(source, [])
        if len(rows) < EXAMPLES:
            rows.append(row)


class Gathered:
    """What one reading of the rows gathers: 64-bit digests, and counts with examples."""

    def __init__(self, masker: Masker) -> None:
        self._keeps_thinking = {inline: masker.template.keeps_thinking(inline=inline) for inline in (True, False)}
        self.found: dict[str, Finding] = {}
        self._scripts: Counter[frozenset[str]] = Counter()
        self._script_rows: dict[frozenset[str], list[tuple[int, str | None]]] = {}
        self._names: list[str | None] = []
        self._sources = array("H")
        self._numbers = array("q")
        self._exact = array("Q")
        self._loose = array("Q")
        self._prompts = array("Q")
        self._bands = array("Q")

    def begin(self, dataset: Dataset) -> None:
        """The rows that follow are this dataset's."""
        self._names.append(dataset.name if self._names else None)
        columns = dataset.format.columns
        self._columns = frozenset(columns.values())
        self._turn_columns = [columns[role] for role in TURN_ROLES if role in columns]

    def _note(self, name: str, text: str, row: int) -> None:
        if name in self.found or len(self.found) < KINDS:
            self.found.setdefault(name, Finding(name, text)).add(row, self._names[-1])

    def look(self, row: Row) -> None:
        """Take in one row of the dataset that was begun last."""
        if row.sample is None:
            return
        for name in (row.raw or {}).keys() - self._columns:
            shown = one_line(name, max_length=40)
            text = f"the column {shown} is not used: map it in data.columns if the model should see it"
            self._note(f"unused column {shown}", text, row.index)
        for name in self._unused_fields(row.raw or {}):
            shown = one_line(name, max_length=40)
            text = f"the field {shown} of a turn is not used: put it into the content if the model should see it"
            self._note(f"unused field {shown}", text, row.index)
        messages = row.sample.messages
        if messages is not None:
            if not any(message["role"] == "assistant" for message in messages):
                self._note("no reply", "there is no assistant turn: add a reply, or take the row out", row.index)
            if content.has_empty_reply(messages):
                text = "a reply is empty or only white space: write it, or take the row out"
                self._note("empty reply", text, row.index)
            if any(not self._keeps_thinking[inline] for inline in content.thinking(messages)):
                text = (
                    "the chat template leaves out the thinking before a reply: choose a model that thinks to train it"
                )
                self._note("thinking left out", text, row.index)
            if wrong := content.role_problem(messages):
                problem, remedy = wrong
                self._note(f"roles: {problem}", f"the order of turns ({problem}): {remedy}", row.index)
        whole = "\n".join(content.texts(row.sample))
        for kind in content.secrets(whole):
            text = f"there seems to be a secret ({kind}): take it out, for the model may repeat it"
            self._note(f"secret: {kind}", text, row.index)
        if content.is_mojibake(whole):
            text = "text was read in a wrong encoding (such as Ã© for é): make the file again from its source, as UTF-8"
            self._note("mojibake", text, row.index)
        if content.has_invisible(whole):
            text = "there are control or invisible characters: take them out unless they are meant"
            self._note("invisible characters", text, row.index)
        written = content.scripts(whole)
        self._scripts[written] += 1
        rows = self._script_rows.setdefault(written, [])
        if len(rows) < EXAMPLES:
            rows.append((row.index, self._names[-1]))
        self._sources.append(len(self._names) - 1)
        self._numbers.append(row.index)
        self._exact.append(digest(row.sample))
        self._loose.append(loose_digest(row.sample))
        self._prompts.append(prompt_digest(row.sample))
        self._bands.extend(bands(whole))

    def _unused_fields(self, raw: dict[str, Any]) -> set[str]:
        turns = [turn for column in self._turn_columns if isinstance(raw.get(column), list) for turn in raw[column]]
        return {name for turn in turns if isinstance(turn, dict) for name in turn.keys() - TURN_FIELDS}

    def all(self, prepared: Prepared, max_length: int) -> list[Finding]:
        """Every finding, the commonest first; none before a row was looked at."""
        if not self._numbers or not any(map(len, (source.rows for source in prepared.sources))):
            return []
        findings = [*self.found.values(), *self._repeated(prepared), *self._unusual_scripts()]
        if prepared.eval_source is not None:
            findings += self._in_evaluation(prepared)
        findings += _lengths(prepared, max_length)
        return sorted((each for each in findings if each.count), key=lambda finding: -finding.count)

    def _repeated(self, prepared: Prepared) -> Iterator[Finding]:
        """Exact and near duplicates, and held-out rows of which the training data holds the prompt."""
        import numpy

        exact = _again(numpy.frombuffer(self._exact, dtype=numpy.uint64))
        near = _again(numpy.frombuffer(self._loose, dtype=numpy.uint64))
        grouped = numpy.frombuffer(self._bands, dtype=numpy.uint64).reshape(len(self._numbers), -1)
        for column in range(grouped.shape[1]):
            near |= _again(grouped[:, column])
        yield self._marked("duplicate", "the same as an earlier row: take it out, or it counts twice", exact)
        text = "nearly the same as an earlier row: see whether both are wanted"
        yield self._marked("near duplicate", text, near & ~exact)
        held = self._held(prepared)
        prompts = numpy.frombuffer(self._prompts, dtype=numpy.uint64)
        leaking = held & numpy.isin(prompts, prompts[~held])
        text = "held out, but the training data has the same prompt: take one out, or the held-out loss is too good"
        yield self._marked("leak", text, leaking)

    def _held(self, prepared: Prepared) -> Any:
        import numpy

        numbers = numpy.frombuffer(self._numbers, dtype=numpy.int64)
        sources = numpy.frombuffer(self._sources, dtype=numpy.uint16)
        held = numpy.zeros(len(numbers), dtype=bool)
        for place, source in enumerate(prepared.sources):
            held |= (sources == place) & numpy.isin(numbers, source.held)
        return held

    def _marked(self, name: str, text: str, which: Any) -> Finding:
        finding = Finding(name, text, count=int(which.sum()))
        for place in which.nonzero()[0].tolist():
            finding.add(self._numbers[place], self._names[self._sources[place]], count=0)
        return finding

    def _in_evaluation(self, prepared: Prepared) -> list[Finding]:
        """Rows of data.eval_path or data.eval_split that the training data holds, whole or in their prompt."""
        import numpy

        assert prepared.eval_source is not None
        dataset = prepared.eval_source.dataset
        trained = set(self._exact)
        prompts = set(numpy.unique(numpy.frombuffer(self._prompts, dtype=numpy.uint64)).tolist())
        same = Finding(
            "in evaluation",
            f"of {dataset.name} also in the training data, so not measured on: take them out of either",
        )
        prompt = Finding(
            "leak to evaluation",
            f"of {dataset.name} whose prompt is also in the training data: take them out of either, or the held-out "
            "loss is too good",
        )
        for row in dataset:
            if row.sample is None:
                continue
            if digest(row.sample) in trained:
                same.add(row.index, dataset.name)
            elif prompt_digest(row.sample) in prompts:
                prompt.add(row.index, dataset.name)
        return [same, prompt]

    def _unusual_scripts(self) -> list[Finding]:
        """Rows in writing systems that hardly any other row uses."""
        total = sum(self._scripts.values())

        def rows_with(script: str) -> int:
            return sum(count for written, count in self._scripts.items() if script in written)

        usual = {script for script in content.SCRIPTS if rows_with(script) >= 0.01 * total}
        found: dict[str, Finding] = {}
        for written, count in self._scripts.items():
            for script in written - usual:
                text = f"{script} letters, which few rows have: see whether they belong here"
                entry = found.setdefault(script, Finding(f"script: {script}", text))
                entry.count += count
                for index, name in sorted(self._script_rows[written], key=lambda each: each[0]):
                    entry.add(index, name, count=0)
        return list(found.values())


def _again(values: Any) -> Any:
    """Whether each value stood at an earlier place."""
    import numpy

    first = numpy.zeros(len(values), dtype=bool)
    first[numpy.unique(values, return_index=True)[1]] = True
    return ~first


def _lengths(prepared: Prepared, max_length: int) -> list[Finding]:
    """Rows whose replies never end, and rows far shorter or longer than the others."""
    endless = Finding(
        "never ends",
        "no end-of-turn token is trained, so the reply is never taught to end: choose a model whose chat template "
        "writes one after each reply",
    )
    short = Finding("very short", "at most 2 tokens are trained: see whether the reply is whole")
    long = Finding("very long", "far more tokens are trained than in most rows: see whether it is one row")
    ordered = sorted(count for source in prepared.sources for count in source.rows.trained)
    quarter, three_quarters = ordered[len(ordered) // 4], ordered[len(ordered) * 3 // 4]
    limit = three_quarters + 5 * max(three_quarters - quarter, three_quarters // 2)
    for place, source in enumerate(prepared.sources):
        name, rows = source.dataset.name if place else None, source.rows
        for number, trained, ended, length in zip(rows.numbers, rows.trained, rows.ended, rows.lengths, strict=True):
            if not ended and length < max_length:
                endless.add(number, name)
            if trained <= 2:
                short.add(number, name)
            if trained > limit:
                long.add(number, name)
    return [endless, short, long]
