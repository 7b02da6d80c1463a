"""From a recipe's datasets to the rows a trainer takes: read, masked, split, mixed, counted."""

import random
import re
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice, pairwise, tee
from typing import Any

from tuitune.data import cache
from tuitune.data.cache import Dropped, Rows, RowsWriter
from tuitune.data.dataset import Dataset, Row, eval_section, open_dataset, sections, told_apart
from tuitune.data.digest import among, digest
from tuitune.errors import UnusableInput
from tuitune.language import N_, Sentence, _, plural, reworded, said
from tuitune.masking import Conversation, Masked, Masker, Sample, UnusableRow
from tuitune.methods import Encoded, Method, method_of
from tuitune.methods.method import OverLength
from tuitune.paths import key_of
from tuitune.recipe import Recipe
from tuitune.recipe_sections import HUB, DataSection

BATCH = 256
EXAMPLES = 5
_OTHER = N_("another reason")
REASONS = 50
"""Different reasons that are told apart; a hostile file may have one for each row."""

Progress = Callable[[int, int | None], None]
_PLACE = re.compile(r"\b(line|element|row|turn|message) \d+(?:, column \d+| at column \d+)?")


@dataclass(frozen=True)
class Source:
    """One of the recipe's datasets: all its rows, the row numbers `held_out`, and how often each row is used.

    `name` is the file's, told apart from others of that name.
    """

    name: str
    dataset: Dataset
    rows: Rows
    held_out: list[int]
    weight: float = 1.0


@dataclass
class Prepared:
    """Tokenised rows with the columns of the recipe's method, and what became of every row."""

    sources: list[Source]
    """The recipe's datasets: data.path, then data.also."""
    train: Any
    """datasets.Dataset, memory-mapped where the disk had room"""
    eval: Any
    """datasets.Dataset of the held-out rows, or None."""
    eval_source: Source | None
    """data.eval_path or data.eval_split, its rows that are also in the training data included."""
    dropped: dict[str, Dropped]
    """Reason to rows left out; reasons from further datasets begin with the dataset's name."""
    tokens: int
    """Tokens of the rows in `train`, after cutting."""
    trained_tokens: int
    truncated: int
    """Rows cut at max_length."""
    longest: int
    """Tokens of the longest sequence, after cutting."""
    thinking: bool
    """Whether the first dataset brings thinking of its own before replies."""
    notices: list[str]
    """What the user should know of where replies begin and how the rows are kept, one sentence each."""

    @property
    def dataset(self) -> Dataset:
        """The recipe's first dataset."""
        return self.sources[0].dataset

    @property
    def names(self) -> list[str]:
        """Of all datasets by their place, the evaluation's last; no two are equal."""
        return told_apart([source.dataset.name for source in (*self.sources, *filter(None, [self.eval_source]))])

    @property
    def rows(self) -> Rows:
        """The first dataset's rows, before some were held out."""
        return self.sources[0].rows

    @property
    def eval_rows(self) -> list[int]:
        """Row numbers, in the first dataset, of the rows held out from it."""
        return self.sources[0].held_out

    def prompts(self, count: int) -> list[Conversation]:
        """The first `count` different prompts, up to each row's first reply: of held-out rows, else of the data."""
        held_out = set(self.eval_rows)
        prompts: list[Conversation] = []
        for row in self.dataset.rows(stop=max(held_out) + 1 if held_out else 1000):
            if row.messages is None or (held_out and row.index not in held_out):
                continue
            roles = [message["role"] for message in row.messages]
            if "assistant" in roles[1:] and (prompt := row.messages[: roles.index("assistant", 1)]) not in prompts:
                prompts.append(prompt)
            if len(prompts) == count:
                break
        return prompts


def prepare(
    recipe: Recipe,
    tokenizer: Any,
    progress: Progress = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Prepared:
    """Read, tokenise, mask, split and mix the recipe's datasets; rows that were tokenised before come from the cache.

    `progress` gets rows done and, where it can be estimated, their number. When `cancelled` turns true the rows so far
    are returned. Raises UnusableInput where no row can be trained on, TuituneError where neither disk nor memory has
    room for them.
    """
    data = recipe.data
    is_whole_split = data.eval_split is not None and "[" not in data.eval_split
    if is_whole_split and data.eval_path is None and not data.path.startswith(HUB):
        raise UnusableInput(
            "data.eval_split names a split of a Hub dataset: give a file's name in data.eval_path, or a part of the "
            "rows, for example train[90%:]."
        )
    cache.sweep()
    method = method_of(recipe)
    masker = Masker(tokenizer, method.train_on(recipe), data.max_length)
    sources = sections(data)
    datasets = [open_dataset(section) for section in sources]
    row_sets = [_tokenised(dataset, method, masker, data, progress, cancelled) for dataset in datasets]
    names = told_apart([dataset.name for dataset in datasets])
    if not any(map(len, row_sets)) and not cancelled():
        raise UnusableInput(_no_usable_row(names, row_sets))
    if data.bad_rows == "refuse" and any(rows.dropped for rows in row_sets):
        raise UnusableInput(_refused(names, row_sets))
    dropped = _all_dropped(names, row_sets)
    held_out = _held_out(row_sets, data.eval_share, recipe.train.seed)
    train_places = [
        _weighted(_without(len(rows), held_places), section.weight, recipe.train.seed + place)
        for place, (rows, held_places, section) in enumerate(zip(row_sets, held_out, sources, strict=True))
    ]
    evaluation = _selected(row_sets, held_out) if any(map(len, held_out)) else None
    eval_source = None
    if (elsewhere := eval_section(data)) is not None:
        eval_source, evaluation = _eval_file(elsewhere, method, masker, row_sets, progress, cancelled)
    evaluated = [eval_source.rows] if eval_source else []
    thinking = datasets[0].brings_thinking()
    return Prepared(
        sources=[
            Source(name, dataset, rows, sorted({rows.numbers[place] for place in held_places.tolist()}), section.weight)
            for name, dataset, rows, held_places, section in zip(
                names, datasets, row_sets, held_out, sources, strict=True
            )
        ],
        train=method.arranged(_selected(row_sets, train_places), recipe),
        eval=None if evaluation is None else method.arranged(evaluation, recipe),
        eval_source=eval_source,
        dropped=dropped,
        tokens=sum(_total(rows.lengths, places) for rows, places in zip(row_sets, train_places, strict=True)),
        trained_tokens=sum(_total(rows.trained, places) for rows, places in zip(row_sets, train_places, strict=True)),
        truncated=sum(rows.truncated for rows in row_sets),
        longest=max((max(rows.longest, default=0) for rows in row_sets), default=0),
        thinking=thinking,
        notices=[
            *([] if thinking else _reply_starts(masker, datasets[0])),
            *dict.fromkeys(rows.unkept for rows in [*row_sets, *evaluated] if rows.unkept),
        ],
    )


def _reply_starts(masker: Masker, dataset: Dataset) -> list[str]:
    """Where replies begin, if that is another place than the end of the chat template's prompt for a reply."""
    from tuitune.chat_template.reply_start import difference, shown

    conversations = any(row.messages for row in dataset.rows(stop=EXAMPLES))
    differing = difference(masker.template) if conversations else None
    if differing is None:
        return []
    prompt_start, trained_start = map(shown, differing)
    return [
        _(
            "The data has no thinking, so replies are trained behind {trained}, where the chat template's prompt has "
            "{prompt}: chat here begins them as trained, and exports where they can; to train thinking, give it in the "
            "replies.",
            trained=trained_start,
            prompt=prompt_start,
        )
    ]


def _tokenised(
    dataset: Dataset,
    method: Method,
    masker: Masker,
    data: DataSection,
    progress: Progress,
    cancelled: Callable[[], bool],
) -> Rows:
    key = key_of(
        cache.code_identity(),
        *dataset.identity,
        dataset.format.columns,
        masker.identity,
        data.over_length,
        dataset.format.name,
        method.name,
    )
    if rows := cache.find(key):
        progress(len(rows), len(rows))
        return rows
    writer = RowsWriter(key, method.columns)
    try:
        _fill(writer, dataset, method, masker, data, progress, cancelled)
    except BaseException:
        writer.discard()
        raise
    return writer.close(keep=not cancelled())


def _fill(
    writer: RowsWriter,
    dataset: Dataset,
    method: Method,
    masker: Masker,
    data: DataSection,
    progress: Progress,
    cancelled: Callable[[], bool],
) -> None:
    rows, done, expected = writer.rows, 0, dataset.estimated_rows()
    batches, batches_to_encode = tee(_sampled(method, batch) for batch in _batches(dataset.rows(), cancelled))
    encoded = masker.encode_batches(
        [sample for _row, samples in batch for sample in samples] for batch in batches_to_encode
    )
    for batch, masks in zip(batches, encoded, strict=True):
        masks_left = iter(masks)
        batch_parts: list[Encoded] = []
        for row, samples in batch:
            parts = _encoded(method, masker, row, [next(masks_left) for _sample in samples], data.over_length)
            if isinstance(parts, str):
                _drop(rows.dropped, row.index, parts)
                continue
            assert row.sample is not None
            content = digest(row.sample)
            for part in parts:
                rows.numbers.append(row.index)
                rows.digests.append(content)
                rows.lengths.append(part.tokens)
                rows.longest.append(part.longest)
                rows.trained.append(part.trained_tokens)
                rows.ended.append(part.ended)
            batch_parts += parts
            rows.truncated += any(part.truncated for part in parts)
        if batch_parts:
            writer.add({name: [part.columns[name] for part in batch_parts] for name in method.columns})
        done += len(batch)
        progress(done, None if expected is None else max(done, expected))


def encode_row(method: Method, masker: Masker, row: Row, over_length: OverLength) -> list[Encoded] | str:
    """The row as the trainer gets it, in one part or several; or why it cannot be used."""
    ((row, samples),) = _sampled(method, [row])
    return _encoded(method, masker, row, masker.encode_batch(samples), over_length)


def _sampled(method: Method, batch: list[Row]) -> list[tuple[Row, list[Sample]]]:
    """Each row with the samples to tokenise; a row that cannot be used has an error and no samples."""
    sampled: list[tuple[Row, list[Sample]]] = []
    for row in batch:
        try:
            sampled.append((row, method.samples(row.sample) if row.sample else []))
        except UnusableRow as error:
            sampled.append((replace(row, sample=None, error=error.sentence), []))
    return sampled


def _encoded(
    method: Method, masker: Masker, row: Row, masks: list[Masked | UnusableRow], over_length: OverLength
) -> list[Encoded] | str:
    if row.sample is None:
        return row.error or _("it cannot be read")
    try:
        return method.encode(masker, row.sample, masks, over_length)
    except UnusableRow as error:
        return error.sentence


def _batches(rows: Iterator[Row], cancelled: Callable[[], bool]) -> Iterator[list[Row]]:
    while (batch := list(islice(rows, BATCH))) and not cancelled():
        yield batch


def _drop(dropped: dict[str, Dropped], index: int, reason: str) -> None:
    words = reason.english if isinstance(reason, Sentence) else reason  # as the cache keeps them
    made_of = said(reason) if isinstance(reason, Sentence) else {}
    general = _PLACE.sub(lambda match: f"{'an' if match[1] == 'element' else 'a'} {match[1]}", words)
    if general not in dropped and len(dropped) >= REASONS:
        general, made_of = _OTHER, {"message": _OTHER}
    entry = dropped.setdefault(general, Dropped(first=words, said=made_of))
    entry.count += 1
    if len(entry.examples) < EXAMPLES:
        entry.examples.append(index + 1)


def _all_dropped(names: list[str], row_sets: list[Rows]) -> dict[str, Dropped]:
    """By reason; in other languages than English this tells the place of the first one."""
    dropped = {reworded(reason, entry.said): entry for reason, entry in row_sets[0].dropped.items()}
    for name, rows in zip(names[1:], row_sets[1:], strict=True):
        for reason, entry in rows.dropped.items():
            dropped[_("{name}: {reason}", name=name, reason=reworded(reason, entry.said))] = entry
    return dropped


def _no_usable_row(names: list[str], row_sets: list[Rows]) -> str:
    """The sentence for datasets of which nothing can be trained: the commonest reason, with its remedy."""
    reasons = [(name, entry) for name, rows in zip(names, row_sets, strict=True) for entry in rows.dropped.values()]
    if not reasons:
        return _("{file} holds no rows: give another file in data.path.", file=names[0])
    name, entry = max(reasons, key=lambda reason: reason[1].count)
    further = len(names) - 1
    values = {"file": name, "row": entry.examples[0], "rows": entry.count, "reason": entry.words}
    if not further:
        return _(
            "No row of {file} can be trained on; row {row} of {file} (of {rows} such): {reason}; `tuitune inspect "
            "RECIPE --rows 1:3` shows rows.",
            **values,
        )
    return plural(
        "No row of {file} nor of the {count} other dataset can be trained on; row {row} of {file} (of {rows} such): "
        "{reason}; `tuitune inspect RECIPE --rows 1:3` shows rows.",
        "No row of {file} nor of the {count} other datasets can be trained on; row {row} of {file} (of {rows} such): "
        "{reason}; `tuitune inspect RECIPE --rows 1:3` shows rows.",
        further,
        **values,
    )


def _refused(names: list[str], row_sets: list[Rows]) -> str:
    """The sentence for the first dataset with rows that cannot be used, and how many there are in all."""
    counts = [sum(entry.count for entry in rows.dropped.values()) for rows in row_sets]
    name, rows, count = next(dataset for dataset in zip(names, row_sets, counts, strict=True) if dataset[2])
    first = min(rows.dropped.values(), key=lambda entry: entry.examples[0])
    values = {"rows": count, "file": name, "row": first.examples[0], "reason": first.words}
    if sum(counts) == count:
        return _(
            "{rows} rows of {file} cannot be used and data.bad_rows is refuse; row {row} of {file}: {reason}; or set "
            "data.bad_rows to skip.",
            **values,
        )
    return _(
        "{rows} rows of {file}, {others} of other datasets, cannot be used and data.bad_rows is refuse; row {row} of "
        "{file}: {reason}; or set data.bad_rows to skip.",
        others=sum(counts) - count,
        **values,
    )


def _total(values: "array[int]", places: Any) -> int:
    import numpy

    return int(numpy.frombuffer(values, dtype=values.typecode)[places].sum()) if len(values) else 0


def _held_out(row_sets: list[Rows], share: float, seed: int) -> list[Any]:
    """Places of each dataset's held-out rows: `share` of all, drawn by content, so that equal rows stay together."""
    import numpy

    total = sum(map(len, row_sets))
    if share == 0 or total < 2:
        return [numpy.zeros(0, dtype=numpy.int64) for _ in row_sets]
    draws = numpy.concatenate([numpy.frombuffer(rows.digests, dtype=numpy.uint64) for rows in row_sets])
    # An odd multiplier permutes the digests; the seed chooses which permutation. In place: there may be millions.
    draws *= numpy.uint64(random.Random(seed).getrandbits(64) | 1)
    draws ^= draws >> numpy.uint64(29)
    starts = [0]
    for rows in row_sets:
        starts.append(starts[-1] + len(rows))
    row_count = max(1, round(share * total))
    places = numpy.sort(_first_groups(draws, row_count, 2 * row_count))
    return [places[(places >= start) & (places < end)] - start for start, end in pairwise(starts)]


def _first_groups(draws: Any, row_count: int, looked_at: int) -> Any:
    """Places of the smallest values, `row_count` at most, where equal values are taken together or not at all.

    Only the smallest `looked_at` values are sorted first; all of them where these do not suffice.
    """
    import numpy

    candidates = numpy.arange(len(draws))
    if looked_at < len(draws):
        candidates = numpy.flatnonzero(draws <= numpy.partition(draws, looked_at)[looked_at])
    order = candidates[numpy.argsort(draws[candidates], kind="stable")]
    values = draws[order]
    groups: list[Any] = []
    count = at = 0
    while count < row_count and at < len(order):
        end = int(numpy.searchsorted(values, values[at], side="right"))
        if count + end - at <= row_count:
            groups.append(order[at:end])
            count += end - at
        at = end
    if count < row_count and len(order) < len(draws):
        return _first_groups(draws, row_count, len(draws))
    return numpy.concatenate(groups) if groups else order[:0]


def first_parts(rows: Rows) -> Any:
    """Whether each row is a whole row of the dataset or the first part of a split one, as an array of booleans."""
    import numpy

    numbers = numpy.frombuffer(rows.numbers, dtype=numpy.int64)
    first = numpy.ones(len(numbers), dtype=bool)
    first[1:] = numbers[1:] != numbers[:-1]
    return first


def _without(rows: int, left_out: Any) -> Any:
    """The places of all rows but the ones `left_out`, as 32-bit numbers."""
    import numpy

    is_kept = numpy.ones(rows, dtype=bool)
    is_kept[left_out] = False
    places = numpy.arange(rows, dtype=numpy.uint32)
    return places[is_kept] if len(left_out) else places


def _weighted(places: Any, weight: float, seed: int) -> Any:
    """Each place `weight` times; for the fractional part of `weight`, that share of the places, drawn by the seed."""
    import numpy

    if weight == 1:
        return places
    part = numpy.random.default_rng(seed).choice(places, round((weight % 1) * len(places)), replace=False)
    return numpy.concatenate([*[places] * int(weight), numpy.sort(part)])


def _selected(row_sets: list[Rows], places: list[Any]) -> Any:
    import datasets

    parts = [_chosen(rows.dataset(), chosen) for rows, chosen in zip(row_sets, places, strict=True)]
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


def _chosen(dataset: Any, places: Any) -> Any:
    """These rows of the dataset. Its own `select` goes through a Python list, which takes ten times the memory."""
    import datasets
    import numpy
    import pyarrow

    if len(places) == len(dataset) and numpy.array_equal(places, numpy.arange(len(dataset), dtype=numpy.uint32)):
        return dataset
    indices = pyarrow.table({"indices": pyarrow.array(places.astype(numpy.uint64))})
    fingerprint = datasets.fingerprint.generate_random_fingerprint()
    return datasets.Dataset(dataset.data, info=dataset.info, indices_table=indices, fingerprint=fingerprint)


def _eval_file(
    data: DataSection,
    method: Method,
    masker: Masker,
    row_sets: list[Rows],
    progress: Progress,
    cancelled: Callable[[], bool],
) -> tuple[Source, Any]:
    """The recipe's evaluation dataset, and its rows that are not trained on. Raises UnusableInput without any."""
    import numpy

    dataset = open_dataset(data)
    rows = _tokenised(dataset, method, masker, data, progress, cancelled)
    trained = numpy.concatenate([numpy.frombuffer(row_set.digests, dtype=numpy.uint64) for row_set in row_sets])
    places = numpy.flatnonzero(~among(numpy.frombuffer(rows.digests, dtype=numpy.uint64), trained))
    if not len(places) and not cancelled():
        unusable = sum(entry.count for entry in rows.dropped.values())
        raise UnusableInput(
            "{dataset} (for evaluation) leaves no row to measure on: {rows} of its rows are also in the "
            "training data and {unusable} cannot be used; give other rows in data.eval_path or "
            "data.eval_split, or hold out a data.eval_share.",
            dataset=dataset.name,
            rows=len(rows),
            unusable=unusable,
        )
    return Source(dataset.name, dataset, rows, []), _chosen(rows.dataset(), places)
