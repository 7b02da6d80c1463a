"""Judge whether an exported model answers as its adapter does: what differs more than its kind explains is an error."""

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tuitune.atomic import write_atomic
from tuitune.errors import TuituneError
from tuitune.export.answers import REPLY_TOKENS, Answers, Reference, apart
from tuitune.language import Sentence, _

FILE = "parity.json"
_SURE = 0.5
"""Agreement is counted where the adapter gives a token at least this probability: elsewhere two are as good."""
_UNDECIDED = 0.5
"""Two tokens whose log-probabilities are no further apart than this may change places when numbers are rounded."""


@dataclass(frozen=True)
class Bounds:
    """The most that a kind may differ: mean |log p of the export − log p of the adapter|, and least agreement."""

    logprob: float
    agreement: float

    @property
    def one_place(self) -> float:
        """The most that a log-probability may differ at a single place, where chance moves it more than on average."""
        return max(_UNDECIDED, 4 * self.logprob)


BOUNDS: dict[str, Bounds] = {
    "16": Bounds(0.06, 0.97),
    "q8_0": Bounds(0.10, 0.96),
    "q6_k": Bounds(0.20, 0.94),
    "q5": Bounds(0.35, 0.90),
    "q4": Bounds(0.60, 0.85),
    "merged_4bit": Bounds(0.60, 0.85),
    "smaller": Bounds(1.50, 0.60),
}
"""By kind. They rest on one small model, the demo's, which `python -m benchmarks.export_parity` measures, and are
some 30 to 300 times what that one differs by: rounding moves others more, and no larger model has been measured."""


def bounds_of(kind: str) -> Bounds:
    """The bounds for a kind of export by its name."""
    type_ = kind.rpartition(":")[2]
    if kind == "merged_4bit" or type_ in ("q8_0", "q6_k"):
        return BOUNDS[type_]
    if type_ in ("adapter", "adapter_gguf", "merged_16bit", "f16", "bf16"):
        return BOUNDS["16"]
    return BOUNDS.get(type_[:2], BOUNDS["smaller"])


@dataclass(frozen=True)
class Parity:
    """How an export compares with its adapter. Figures are None where no row could be scored."""

    kind: str
    prompts: int
    same_prompt_ids: int
    ended: int
    same_replies: int
    parted_undecided: int
    scored_tokens: int
    agreement: float | None
    logprob_difference: float | None
    base_logprob_difference: float | None
    perplexity: float | None
    adapter_perplexity: float | None
    rounding: float | None
    bound_logprob_difference: float
    bound_agreement: float

    def words(self) -> Sentence:
        """In a sentence for the user."""
        asked = _(
            "Asked {prompts} prompts: {same} replies as the adapter's, {ended} ended",
            prompts=self.prompts,
            same=self.same_replies,
            ended=self.ended,
        )
        if self.parted_undecided:
            asked = _(
                "{asked} ({replies} went on, having left the adapter's where two tokens were about as likely, and "
                "would end the adapter's own reply)",
                asked=asked,
                replies=self.parted_undecided,
            )
        if self.logprob_difference is None:
            return _("{asked}; no held-out row could be compared.", asked=asked)
        difference = _(
            "log-probabilities {difference:.3f} apart on average (at most {most:g}), perplexity {perplexity:.2f} "
            "beside the adapter's {expected:.2f}",
            difference=self.logprob_difference,
            most=self.bound_logprob_difference,
            perplexity=self.perplexity,
            expected=self.adapter_perplexity,
        )
        if self.agreement is None:
            return _(
                "{asked}; on {tokens} held-out tokens {difference}.",
                asked=asked,
                tokens=self.scored_tokens,
                difference=difference,
            )
        return _(
            "{asked}; on {tokens} held-out tokens {agreement:.0%} of sure next tokens the same, {difference}.",
            asked=asked,
            tokens=self.scored_tokens,
            agreement=self.agreement,
            difference=difference,
        )


def judged(kind: str, expected: Reference, answers: Answers, *, template_told: bool = False) -> Parity:
    """Compare an export's answers with the adapter's. Raises TuituneError with what is wrong.

    `template_told` says that the user knows already that the exported template begins replies differently. Where
    rounding alone moves the adapter's own log-probabilities, twice as much as that is always allowed.
    """
    adapter, bounds = expected.adapter, bounds_of(kind)
    bounds = replace(bounds, logprob=max(bounds.logprob, 2 * (expected.rounding or 0.0)))
    scored = len(answers.logprobs)
    sure_places = [n for n in range(scored) if adapter.sureness[n] >= math.log(_SURE)]
    agreement = (
        sum(answers.likeliest[n] == adapter.likeliest[n] for n in sure_places) / len(sure_places)
        if sure_places
        else None
    )
    compared = Answers(logprobs=adapter.logprobs[:scored])
    same_prompt_ids = sum(one == other for one, other in zip(adapter.prompt_ids, answers.prompt_ids, strict=True))
    if same_prompt_ids < len(adapter.prompt_ids) and not template_told:
        raise TuituneError(
            "The exported chat template makes other tokens of a prompt than the run was trained on, so replies would "
            "be worse: nothing was exported. Export the adapter and use the run's own tokenizer."
        )
    parity = Parity(
        kind=kind,
        prompts=len(adapter.prompt_ids),
        same_prompt_ids=same_prompt_ids,
        ended=sum(answers.ended),
        same_replies=sum(one == other for one, other in zip(adapter.replies, answers.replies, strict=True)),
        parted_undecided=_require_ends(expected, answers, bounds),
        scored_tokens=scored,
        agreement=agreement,
        logprob_difference=apart(answers.logprobs, adapter.logprobs),
        base_logprob_difference=apart(answers.logprobs, expected.base_logprobs),
        perplexity=answers.perplexity(),
        adapter_perplexity=compared.perplexity(),
        rounding=expected.rounding,
        bound_logprob_difference=bounds.logprob,
        bound_agreement=bounds.agreement,
    )
    _require_same(parity, expected)
    return parity


def _require_ends(expected: Reference, answers: Answers, bounds: Bounds) -> int:
    """The number of replies that go on where the adapter's ends, and are none the worse for it.

    A greedy reply may take another way where two tokens are about as likely, and that way may be longer. What shows
    whether the exported model can end a reply is the adapter's own reply: the token that ends it must be about as
    likely after it as it was, and whatever runs the model must stop at it. Raises TuituneError.
    """
    adapter, gone_on = expected.adapter, 0
    for n, reply in enumerate(adapter.replies):
        if not adapter.ended[n]:
            continue
        if answers.last_logprobs[n] < adapter.last_logprobs[n] - bounds.one_place:
            raise TuituneError(
                "The exported model does not end a reply where the adapter does: the token that ends it has the "
                "probability {probability:.1%} there, and {expected:.1%} with the adapter. Nothing was exported: "
                "choose a kind with more bits.",
                probability=math.exp(answers.last_logprobs[n]),
                expected=math.exp(adapter.last_logprobs[n]),
            )
        if answers.ended[n]:
            continue
        if reply[-1] in answers.replies[n]:
            raise TuituneError(
                "The exported model is not stopped by the token that ends a reply, so replies would never end: "
                "nothing was exported. Export the adapter instead, and report this."
            )
        place = next(at for at, pair in enumerate(zip(reply, answers.replies[n], strict=False)) if pair[0] != pair[1])
        choices = expected.choices[n][place]
        taken = choices.get(answers.replies[n][place], min(choices.values()))
        same_prompt = adapter.prompt_ids[n] == answers.prompt_ids[n]
        if same_prompt and taken < choices[reply[place]] - bounds.one_place:
            raise TuituneError(
                "A reply of the exported model does not end within {tokens} tokens where the adapter's does, and "
                "leaves it at a token that the adapter gives the probability {probability:.1%} beside {expected:.1%}: "
                "nothing was exported. Choose a kind with more bits.",
                tokens=REPLY_TOKENS,
                probability=math.exp(taken),
                expected=math.exp(choices[reply[place]]),
            )
        gone_on += 1
    return gone_on


def _require_same(parity: Parity, expected: Reference) -> None:
    adapter = expected.adapter
    difference, from_base = parity.logprob_difference, parity.base_logprob_difference
    if difference is None or from_base is None:
        return
    scored = parity.scored_tokens
    learned = apart(adapter.logprobs[:scored], expected.base_logprobs[:scored]) or 0.0
    if learned == 0.0:
        raise TuituneError(
            "The adapter changes nothing: with and without it the model gives every held-out token the same "
            "probability. Train longer, or with a higher learning_rate."
        )
    if learned > parity.bound_logprob_difference and from_base < difference:
        raise TuituneError(
            "The exported model answers as the base model does and not as the adapter: nothing was exported. Export "
            "the adapter instead, and report this."
        )
    if difference > parity.bound_logprob_difference:
        raise TuituneError(
            "The exported model's log-probabilities are {difference:.2f} from the adapter's on held-out tokens, and "
            "{most:g} is the most for this kind: choose a kind with more bits.",
            difference=difference,
            most=parity.bound_logprob_difference,
        )
    if parity.agreement is not None and parity.agreement < parity.bound_agreement:
        raise TuituneError(
            "Only {agreement:.0%} of the next tokens that the adapter is sure of are the exported model's too, and "
            "{least:.0%} is the least for this kind: choose a kind with more bits.",
            agreement=parity.agreement,
            least=parity.bound_agreement,
        )


def write(parity: Parity, path: Path) -> None:
    """Write the figures as JSON."""
    write_atomic(path, json.dumps({**asdict(parity), "words": parity.words().english}, indent=2) + "\n")
