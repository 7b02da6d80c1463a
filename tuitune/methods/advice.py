"""What the audit looks at because of the method: of each row, and of all of them together."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tuitune.conversation import Conversation, Sample
from tuitune.language import _
from tuitune.text import one_line

_MANY = 20
"""Rows below which a share of them says nothing."""
_BIASED = 0.8
"""Share of pairs whose chosen reply is the longer one, from which a model learns length."""


@dataclass(frozen=True, slots=True)
class Remark:
    """Something to know of a row or of the data: a stable name, a text (what: what to do), and of how many rows."""

    name: str
    text: str
    rows: int = 1


class Advice:
    """Gathers over all rows; this one has nothing to say."""

    replies = True
    """Whether rows need replies, and every column should be for the model to see."""

    def look(self, sample: Sample) -> Iterator[Remark]:
        """What is to be said of this row."""
        return iter(())

    def all(self) -> Iterator[Remark]:
        """What is to be said of all rows that were looked at."""
        return iter(())


class PromptAdvice(Advice):
    """Of prompts that the model answers itself: whether each row has what the rewards compare with."""

    replies = False

    def __init__(self, columns: Mapping[str, str]) -> None:
        """`columns` that rewards need, each with the reward's name."""
        self._columns = columns

    def look(self, sample: Sample) -> Iterator[Remark]:
        for column, reward in self._columns.items():
            if (sample.columns or {}).get(column) in (None, ""):
                shown = one_line(column, max_length=40)
                text = _(
                    "the column {column}, which the reward {reward} compares with, is empty or missing: fill it in",
                    column=shown,
                    reward=reward,
                )
                yield Remark(_("no {column}", column=shown), text)


class PairAdvice(Advice):
    def __init__(self) -> None:
        self._pairs = self._longer = 0
        self._characters = [0, 0]

    def look(self, sample: Sample) -> Iterator[Remark]:
        if sample.messages is None or sample.rejected is None:
            return
        chosen, rejected = answer(sample.messages), answer(sample.rejected)
        if not rejected.strip():
            text = _("the rejected reply is empty or only white space: write it, or take the row out")
            yield Remark(_("empty rejected"), text)
        if chosen.strip() == rejected.strip() and sample.messages != sample.rejected:
            text = _("chosen and rejected end in the same reply: see whether they differ as they should")
            yield Remark(_("alike"), text)
        self._pairs += 1
        self._longer += len(chosen) > len(rejected)
        self._characters[0] += len(chosen)
        self._characters[1] += len(rejected)

    def all(self) -> Iterator[Remark]:
        """Whether length tells the chosen replies from the rejected ones."""
        longer, shorter = self._longer, self._pairs - self._longer
        if self._pairs < _MANY or max(longer, shorter) <= _BIASED * self._pairs:
            return
        figures = {
            "share": max(longer, shorter) / self._pairs,
            "chosen": self._characters[0] / self._pairs,
            "rejected": self._characters[1] / self._pairs,
        }
        if longer > shorter:
            text = _(
                "the chosen reply is the longer one in {share:.0%} of pairs (mean length {chosen:,.0f} characters "
                "chosen, {rejected:,.0f} rejected), so length may be what is learned: add pairs whose rejected reply "
                "is the longer one, or set method.name to simpo, which counts by the token",
                **figures,
            )
        else:
            text = _(
                "the rejected reply is the longer one in {share:.0%} of pairs (mean length {chosen:,.0f} characters "
                "chosen, {rejected:,.0f} rejected), so length may be what is learned: add pairs whose chosen reply "
                "is the longer one, or set method.name to simpo, which counts by the token",
                **figures,
            )
        yield Remark(_("length bias"), text, max(longer, shorter))


class ThumbAdvice(Advice):
    def __init__(self, desirable_weight: float, undesirable_weight: float) -> None:
        self._weights = desirable_weight, undesirable_weight
        self._good = self._bad = 0

    def look(self, sample: Sample) -> Iterator[Remark]:
        if sample.rejected is not None:
            self._good += 1
            self._bad += 1
        elif sample.desirable is not None:
            self._good += sample.desirable
            self._bad += not sample.desirable
        return iter(())

    def all(self) -> Iterator[Remark]:
        """Whether good and bad replies weigh alike."""
        remark = imbalance(self._good, self._bad, *self._weights) if self._good or self._bad else None
        yield from () if remark is None else (remark,)


def imbalance(good: int, bad: int, desirable_weight: float, undesirable_weight: float) -> Remark | None:
    """Whether good and bad replies weigh so differently that KTO learns one side alone, with the weights that mend it.

    Good ones should weigh 1 to 4/3 of what the bad ones do (Ethayarajh et al. 2024, section 4.2).
    """
    if bad == 0:
        return Remark(_("one kind"), _("all replies are marked good: add bad ones, or choose sft"), good)
    if good == 0:
        return Remark(_("one kind"), _("all replies are marked bad: add good ones, or choose sft"), bad)
    ratio = desirable_weight * good / (undesirable_weight * bad)
    if 0.99 <= ratio <= 4 / 3 + 0.01:
        return None
    if good < bad:
        mend = f"method.desirable_weight: {undesirable_weight * bad / good:.3g}"
    else:
        mend = f"method.undesirable_weight: {desirable_weight * good / bad:.3g}"
    text = _(
        "{good:,} replies are good and {bad:,} bad, which weighs them {ratio:.2g} to 1: set {mend}",
        good=good,
        bad=bad,
        ratio=ratio,
        mend=mend,
    )
    return Remark(_("imbalance"), text, good + bad)


def answer(turns: Conversation) -> str:
    """The text of the last reply."""
    replies = [turn["content"] or "" for turn in turns if turn["role"] == "assistant"]
    return replies[-1] if replies else ""
