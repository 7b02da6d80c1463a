"""The rows of each step, dealt to the processes that train a run: which rows each of them takes in which pass."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from tuitune.recipe_sections import TrainSection


def rows_a_step(train: TrainSection) -> int:
    """Rows of one optimizer step, over all cards."""
    return train.per_device_train_batch_size * train.gradient_accumulation_steps


def passes_a_step(train: TrainSection, world: int, rows: int | None = None) -> int:
    """Passes that each of `world` cards makes for a step of `rows` rows (all by default)."""
    rows = rows_a_step(train) if rows is None else rows
    return max(1, math.ceil(rows / (train.per_device_train_batch_size * world)))


def deal_by_tokens(rows: Sequence[int], lengths: Sequence[int], group_count: int, group_rows: int) -> list[list[int]]:
    """`rows` in `group_count` groups of at most `group_rows`, for rows laid end to end.

    The sums of `lengths`, the tokens of every row of the data, are as even as possible: the longest rows are dealt
    first, each to the group that has the fewest tokens.
    """
    groups: list[list[int]] = [[] for _ in range(group_count)]
    sums = [0] * group_count
    for row in sorted(rows, key=lambda row: (-lengths[row], row)):
        open_groups = [group for group in range(group_count) if len(groups[group]) < group_rows]
        group = min(open_groups, key=lambda group: (sums[group], len(groups[group]), group))
        groups[group].append(row)
        sums[group] += lengths[row]
    return groups


def deal_by_length(rows: Sequence[int], lengths: Sequence[int], group_count: int, group_rows: int) -> list[list[int]]:
    """`rows` in `group_count` groups of at most `group_rows`, for padded rows: like `lengths` together."""
    by_length = sorted(rows, key=lambda row: (-lengths[row], row))
    size, larger = divmod(len(rows), group_count)
    sizes = [size + (group < larger) for group in range(group_count)]
    ends = [sum(sizes[: group + 1]) for group in range(group_count)]
    return [by_length[end - size : end] for size, end in zip(sizes, ends, strict=True)]


class WholeSteps:
    """A batch sampler for a method that divides a step's work itself: the step's rows in the first of its passes.

    The further ones are empty, for every process.
    """

    def __init__(self, order: Any, train: TrainSection, world: int, agreed: Any = lambda order: order) -> None:
        """`order` is a sampler of the rows of whole steps; `agreed` makes it that of all processes."""
        self._order = order
        self._rows, self._passes = rows_a_step(train), passes_a_step(train, world)
        self._agreed = agreed

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self._order, "set_epoch"):
            self._order.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._order) // self._rows * self._passes

    def __iter__(self) -> Iterator[list[int]]:
        rows = self._agreed(list(self._order))
        for start in range(0, len(rows), self._rows):
            yield rows[start : start + self._rows]
            yield from ([] for _ in range(self._passes - 1))


class DealtBatches:
    """A batch sampler: the passes of one of `world` processes, epoch by epoch, from the order that one card would take.

    Every step has the rows that it has on one card, also the short one at an epoch's end. Each process makes the same
    number of passes; one without rows is an empty list.
    """

    def __init__(
        self,
        order: Any,
        lengths: Sequence[int],
        train: TrainSection,
        rank: int,
        world: int,
        *,
        padded: bool,
        agreed: Any = lambda order: order,
    ) -> None:
        """`order` is a sampler that gives each epoch's rows; `agreed` makes it that of all processes."""
        self._order = order
        self._lengths = lengths
        self._train = train
        self._rank = rank
        self._world = world
        self._deal = deal_by_length if padded else deal_by_tokens
        self._agreed = agreed

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self._order, "set_epoch"):
            self._order.set_epoch(epoch)

    def __len__(self) -> int:
        step = rows_a_step(self._train)
        full, rest = divmod(len(self._lengths), step)
        last = passes_a_step(self._train, self._world, rest) if rest else 0
        return full * passes_a_step(self._train, self._world) + last

    def __iter__(self) -> Iterator[list[int]]:
        rows = self._agreed(list(self._order))
        step = rows_a_step(self._train)
        for start in range(0, len(rows), step):
            yield from self._passes(rows[start : start + step])

    def _passes(self, rows: Sequence[int]) -> list[list[int]]:
        """This process's passes of one step. All make their heaviest passes at the same time, so that none waits."""
        passes = passes_a_step(self._train, self._world, len(rows))
        batch = self._train.per_device_train_batch_size
        groups = self._deal(rows, self._lengths, passes * self._world, batch)
        groups.sort(key=lambda group: -sum(self._lengths[row] for row in group))
        own_groups = []
        for number in range(passes):
            groups_of_pass = groups[number * self._world : (number + 1) * self._world]
            place = self._rank if number % 2 == 0 else self._world - 1 - self._rank  # the heavier one to each in turn
            own_groups.append(groups_of_pass[place])
        return own_groups
