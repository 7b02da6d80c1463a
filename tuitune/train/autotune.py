"""Before the first step, find the fastest way to run the recipe's steps on this GPU: measured, at equal rows a step."""

import gc
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tuitune.backends.dequantized import kept_bytes
from tuitune.backends.loaded import LoadedModel
from tuitune.errors import TuituneError
from tuitune.language import _
from tuitune.methods import method_of
from tuitune.plan.advice import passes_over_data, training_seconds
from tuitune.plan.memory import Rows, holds_whole, longest_batch_tokens, memory_of, shape_of
from tuitune.plan.optimizer import optimizer_name
from tuitune.plan.sharding import why_not_sharded
from tuitune.recipe import Recipe
from tuitune.train.batching import Row
from tuitune.train.dealing import rows_a_step
from tuitune.train.graphs import PassGraphs, can_capture
from tuitune.train.methods import learner_of
from tuitune.train.ranks import ALONE, Ranks
from tuitune.train.sizes import captures_pay, pass_sizes

# Of the memory that was free before the run; the rest is for the optimizer's first step and for fragmentation.
SAFE_SHARE = 0.92
# fp32 Adam states are worth their memory up to this share of the card.
_MOST_TRIALS = 5
# A step is timed twice, or once where it takes so long that nothing else can have moved it by much.
_TIMED_STEPS = 2
_CLEAR_SECONDS = 1.0
# Compiling takes up to three minutes and makes steps about a tenth faster.
_LONG_RUN_SECONDS = 1800.0
# A trial of graphs takes one to three seconds, and each graph a fraction of one.
_TRIAL_PAYS_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to run an optimizer step: `batch` rows a pass, `accumulation` passes."""

    batch: int
    accumulation: int
    checkpointing: bool
    compiled: bool = True
    graphs: bool = False
    """Whether passes are captured as CUDA graphs."""
    dequantize_once: bool = False
    """Whether the 16-bit values of 4-bit weights are kept."""

    def describe(self) -> list[str]:
        rows = {"batch": self.batch, "accumulation": self.accumulation}
        return [
            _("{batch} × {accumulation} rows with checkpointing", **rows)
            if self.checkpointing
            else _("{batch} × {accumulation} rows without checkpointing", **rows),
            *([_("4-bit weights dequantised once")] if self.dequantize_once else []),
            *([_("as CUDA graphs")] if self.graphs else []),
        ]


@dataclass(frozen=True, slots=True)
class Trial:
    """The measurements of a candidate: peak memory with the longest rows, and speed; None where memory ran out."""

    candidate: Candidate
    peak_bytes: int | None
    tokens_per_second: float | None
    capture_s: float = 0.0
    """What capturing one pass took."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """The recipe with the choice written in, and every trial, in the order they were run."""

    recipe: Recipe
    chosen: Trial
    trials: tuple[Trial, ...]
    limit_bytes: int
    """Peaks above this are too close to the card's end to be chosen."""

    def describe(self, attention: str) -> str:
        """One sentence for the user."""
        speed = self.chosen.tokens_per_second or 0.0
        safe = [trial for trial in self.trials if (trial.peak_bytes or 0) <= self.limit_bytes and trial != self.chosen]
        # What is faster and was not chosen would cost more than this run gains by it: captures, and memory.
        others = [tokens for trial in safe if (tokens := trial.tokens_per_second) and tokens <= speed / 0.98]
        way = self.chosen.candidate.describe()
        if len({trial.candidate.compiled for trial in self.trials}) > 1:
            way.append(_("compiled") if self.chosen.candidate.compiled else _("not compiled"))
        way.append(_("{speed:,.0f} tokens/s", speed=speed))
        if others:
            way.append(_("against {speed:,.0f} in the next best way", speed=max(others)))
        return _(
            "Chosen by timing {ways} ways: {way}; up to {peak:.1f} GiB; attention: {attention}.",
            ways=len(self.trials),
            way=way,
            peak=(self.chosen.peak_bytes or 0) / 2**30,
            attention=attention,
        )


def candidates(
    recipe: Recipe, fits: Callable[[Candidate], bool], *, compiled: bool = True, cards: int = 1
) -> list[Candidate]:
    """The ways worth timing, the likeliest winner first: equal rows a step, what the recipe fixes left as it is.

    `fits` says whether the memory estimate allows a candidate; the smallest one is kept whatever it says. All are
    `compiled` or none. Their passes are those of one of so many `cards`.
    """
    train = recipe.train
    rows = rows_a_step(train)
    kinds = (False, True) if train.gradient_checkpointing == "auto" else (train.gradient_checkpointing,)
    rows_a_card = math.ceil(rows / cards)
    batches = sorted((batch for batch in range(1, rows_a_card + 1) if rows % batch == 0), reverse=True)
    chosen: list[Candidate] = []
    for checkpointing in kinds:
        of_kind = [Candidate(batch, math.ceil(rows_a_card / batch), checkpointing, compiled) for batch in batches]
        # The largest that fits wins nearly always, and the next one shows whether larger is still faster.
        chosen += [candidate for candidate in of_kind if fits(candidate)][: 3 if not checkpointing else 2]
    return chosen[:_MOST_TRIALS] or [Candidate(1, rows_a_card, kinds[-1], compiled)]


def best(trials: Sequence[Trial], limit_bytes: int) -> Trial | None:
    """The fastest trial whose peak leaves the safety margin; among those within 2%, the one with the lowest peak."""
    safe = [trial for trial in trials if trial.peak_bytes is not None and trial.peak_bytes <= limit_bytes]
    top = max((trial.tokens_per_second or 0.0 for trial in safe), default=0.0)
    close = [trial for trial in safe if (trial.tokens_per_second or 0.0) >= 0.98 * top]
    return min(close, key=lambda trial: trial.peak_bytes or 0, default=None)


def halved(recipe: Recipe) -> Recipe:
    """The recipe with half the rows a pass and twice the passes a step. Raises TuituneError at one row a pass."""
    train = recipe.train
    if train.per_device_train_batch_size == 1:
        raise TuituneError(
            "Memory ran out at one row a pass: lower data.max_length, set train.gradient_checkpointing: on, "
            "or choose a smaller model."
        )
    batch = train.per_device_train_batch_size // 2
    rows = train.per_device_train_batch_size * train.gradient_accumulation_steps
    while rows % batch:
        batch -= 1
    return _with_train(recipe, per_device_train_batch_size=batch, gradient_accumulation_steps=rows // batch)


def with_less_memory(recipe: Recipe) -> Recipe:
    """The recipe for the same training after memory ran out: without what is kept for speed, then in smaller passes.

    Raises TuituneError where there is no way on.
    """
    if True in (recipe.train.cuda_graphs, recipe.train.dequantize_once):
        return _with_train(recipe, cuda_graphs=False, dequantize_once=False)
    return halved(recipe)


def fit(
    loaded: LoadedModel, rows: Any, *, cancelled: Callable[[], bool] = lambda: False, ranks: Ranks = ALONE
) -> Fitted | None:
    """Time the candidates on the loaded model with its adapter, and set the model to the fastest.

    `rows` is the training dataset. Weights, optimizer and random state are left as they were.
    None on a CPU, or where the recipe says `fit: false`. Raises TuituneError where even one row does not fit.

    With several `ranks` all time the same candidates at once, each on its card, and the slowest and fullest one counts.
    """
    import torch

    recipe = loaded.recipe
    if not recipe.train.fit or loaded.model.device.type != "cuda":
        return None
    lengths = method_of(recipe).lengths(rows)
    by_length = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    before = torch.cuda.memory_reserved()
    free_bytes, total = map(int, ranks.lowest(*torch.cuda.mem_get_info()))
    limit = int(ranks.lowest(SAFE_SHARE * (free_bytes + before))[0]) - _state_bytes(loaded, total)
    fits = _estimator(loaded, [lengths[place] for place in by_length], limit, total)
    trials: list[Trial] = []
    for candidate in candidates(recipe, fits, compiled=loaded.compiled, cards=ranks.world):
        if cancelled():
            return None
        fastest = best(trials, limit)
        if fastest is not None and candidate.checkpointing > fastest.candidate.checkpointing:
            break  # without checkpointing it fits, and computing everything again is never faster
        trials.append(_agreed(_trial(loaded, candidate, rows, by_length), ranks))
        if fastest is not None and (trials[-1].tokens_per_second or 0.0) < (fastest.tokens_per_second or 0.0):
            break  # smaller passes only get slower
    chosen = best(trials, limit)
    if chosen is None:
        step_rows = trials[0].candidate.batch * trials[0].candidate.accumulation
        checkpointing = recipe.train.gradient_checkpointing is not False
        least = Candidate(1, step_rows, checkpointing, loaded.compiled)
        trials.append(_agreed(_trial(loaded, least, rows, by_length), ranks))
        chosen = best(trials, limit)
    if chosen is None:
        raise TuituneError(
            "A row of {tokens:,} tokens does not fit into this GPU's memory: lower data.max_length, set "
            "model.load_in_4bit: true, or choose a smaller model.",
            tokens=lengths[by_length[0]],
        )
    if not cancelled() and _compiling_may_pay(loaded, chosen, len(lengths), sum(lengths)):
        trials.append(_agreed(_trial(loaded, replace(chosen.candidate, compiled=True), rows, by_length), ranks))
        chosen = best(trials, limit) or chosen
    if not cancelled() and _keeping_may_pay(loaded, chosen, lengths, limit):
        trial = _trial(loaded, replace(chosen.candidate, dequantize_once=True), rows, by_length)
        trials.append(_agreed(trial, ranks))
        if is_worth_its_memory(recipe, trials[-1], chosen, limit):
            chosen = trials[-1]
    if not cancelled() and _graphs_may_pay(recipe, chosen, lengths):
        captured = replace(chosen.candidate, graphs=True)
        _apply(loaded, captured)
        if learner_of(recipe).captures and can_capture(loaded):
            loaded.pass_sizes = pass_sizes(lengths, captured.batch)
            trials.append(_agreed(_trial_of_graphs(loaded, captured, rows, by_length), ranks))
            if trials[-1].capture_s and replays_are_better(
                recipe, trials[-1], chosen, lengths, loaded.pass_sizes, limit
            ):
                chosen = trials[-1]
    _apply(loaded, chosen.candidate)
    fitted_recipe = _with_train(
        recipe,
        per_device_train_batch_size=chosen.candidate.batch,
        gradient_accumulation_steps=rows_a_step(recipe.train) // chosen.candidate.batch,
        gradient_checkpointing=chosen.candidate.checkpointing,
        padding_free=loaded.padding_free,
        compile=chosen.candidate.compiled,
        cuda_graphs=chosen.candidate.graphs,
        dequantize_once=chosen.candidate.dequantize_once,
        optim=optimizer_name(recipe, _trainable(loaded), total),
        fit=False,
    )
    return Fitted(fitted_recipe, chosen, tuple(trials), limit)


def _keeping_may_pay(loaded: LoadedModel, chosen: Trial, lengths: list[int], limit: int) -> bool:
    """Whether dequantised weights fit beside the chosen candidate, in a run that is long enough for another trial."""
    recipe = loaded.recipe
    if recipe.train.dequantize_once is False or loaded.backend.name != "unsloth":
        return False
    copy_bytes = kept_bytes(loaded.model)
    if not copy_bytes or (chosen.peak_bytes or 0) + copy_bytes > limit:
        return False
    return recipe.train.dequantize_once is True or _is_long(recipe, chosen, lengths)


def is_worth_its_memory(recipe: Recipe, trial: Trial, chosen: Trial, limit: int) -> bool:
    """Whether a trial that takes more memory than the chosen one is safe, and faster by more than chance."""
    if not trial.tokens_per_second or not chosen.tokens_per_second or (trial.peak_bytes or 0) > limit:
        return False
    return recipe.train.dequantize_once is True or trial.tokens_per_second > 1.01 * chosen.tokens_per_second


def _is_long(recipe: Recipe, chosen: Trial, lengths: list[int]) -> bool:
    """Whether the run is so long that a trial more, of one to three seconds, can pay."""
    return training_seconds(recipe, len(lengths), sum(lengths), chosen.tokens_per_second or 1.0) > _TRIAL_PAYS_SECONDS


def _agreed(trial: Trial, ranks: Ranks) -> Trial:
    """The trial over all cards: the highest peak, and the speed at the pace of the slowest card."""
    if ranks.world == 1:
        return trial
    (has_failed,) = ranks.any(not trial.peak_bytes or not trial.tokens_per_second)
    peak, capture_s = ranks.highest(trial.peak_bytes or 0, trial.capture_s)
    (slowest,) = ranks.lowest(trial.tokens_per_second or 0.0)
    if has_failed:
        return replace(trial, peak_bytes=None, tokens_per_second=None, capture_s=capture_s)
    return replace(trial, peak_bytes=int(peak), tokens_per_second=slowest * ranks.world, capture_s=capture_s)


def _graphs_may_pay(recipe: Recipe, chosen: Trial, lengths: list[int]) -> bool:
    """Whether the run is so long that the seconds of a trial with graphs could pay, or its recipe wants them."""
    if recipe.train.cuda_graphs != "auto":
        return recipe.train.cuda_graphs
    return _is_long(recipe, chosen, lengths)


def replays_are_better(
    recipe: Recipe, captured: Trial, chosen: Trial, lengths: list[int], sizes: tuple[int, ...], limit: int
) -> bool:
    """Whether the trial with graphs is better: within the memory limit, and faster over the run with its captures."""
    if not captured.tokens_per_second or not chosen.tokens_per_second or (captured.peak_bytes or 0) > limit:
        return False
    batch = captured.candidate.batch
    passes = round(passes_over_data(recipe, len(lengths)) * len(lengths) / batch)
    tokens = batch * sum(lengths) / len(lengths)
    eager_s, replay_s = tokens / chosen.tokens_per_second, tokens / captured.tokens_per_second
    is_required = recipe.train.cuda_graphs is True
    return is_required or captures_pay(passes, len(sizes), eager_s, replay_s, captured.capture_s)


def _compiling_may_pay(loaded: LoadedModel, chosen: Trial, rows: int, tokens: int) -> bool:
    """Whether the whole run, over `rows` rows of `tokens` tokens, is so long that minutes of compiling could pay."""
    if loaded.compiled or loaded.recipe.train.compile != "auto" or loaded.backend.name != "unsloth":
        return False
    return training_seconds(loaded.recipe, rows, tokens, chosen.tokens_per_second or 1.0) > _LONG_RUN_SECONDS


def needs_sharding(recipe: Recipe, rows: Any, ranks: Ranks) -> bool:
    """Whether the frozen weights are shared out: as the recipe says, else where one of the cards cannot hold them."""
    import torch

    from tuitune import backends

    if ranks.world == 1 or recipe.train.shard is False:
        return False
    if recipe.train.shard is True:
        return True
    if not torch.cuda.is_available() or why_not_sharded(recipe, hosts=2 if ranks.span_hosts else 1):
        return False
    free_bytes, total = torch.cuda.mem_get_info()
    is_held = holds_whole(
        recipe,
        shape_of(recipe),
        _counted(recipe, rows),
        backend=backends.choose(recipe).name,
        card_bytes=total,
        free_bytes=free_bytes,
    )
    return any(ranks.any(not is_held))


def _counted(recipe: Recipe, rows: Any) -> Rows:
    """The rows as the estimate takes them, with the longest one."""
    lengths = method_of(recipe).lengths(rows)
    return Rows(len(lengths), sum(lengths), 0, (max(lengths, default=0),))


def keeps_activations(loaded: LoadedModel, rows: Any) -> bool:
    """Whether the estimate leaves room for all activations of the longest pass, for a run whose steps are not timed."""
    import torch

    recipe = _with_train(loaded.recipe, gradient_checkpointing=False)
    tokens = longest_batch_tokens(recipe, _counted(recipe, rows), padding_free=loaded.padding_free)
    free_bytes, total = torch.cuda.mem_get_info()
    memory = memory_of(recipe, shape_of(recipe), tokens, backend=loaded.backend.name, card_bytes=total)
    needed: int = memory.total_bytes - memory.weights_bytes - memory.overhead_bytes
    return needed <= SAFE_SHARE * int(free_bytes)


def _estimator(loaded: LoadedModel, lengths: list[int], limit: int, total: int) -> Callable[[Candidate], bool]:
    """Whether the estimate leaves a candidate's longest pass room; generous, as the trial itself will tell."""
    shape = shape_of(loaded.recipe)

    def fits(candidate: Candidate) -> bool:
        chosen = lengths[: candidate.batch]
        tokens = method_of(loaded.recipe).batch_tokens(chosen, padding_free=loaded.padding_free)
        recipe = _with_train(loaded.recipe, gradient_checkpointing=candidate.checkpointing)
        memory = memory_of(recipe, shape, tokens, backend=loaded.backend.name, card_bytes=total)
        return memory.total_bytes <= 1.1 * limit

    return fits


def _trial(loaded: LoadedModel, candidate: Candidate, rows: Any, by_length: list[int]) -> Trial:
    """Run the longest possible pass, then time whole steps of rows drawn evenly over all lengths."""
    import torch

    _apply(loaded, candidate)
    longest, passes, tokens = _step_of(loaded, candidate, rows, by_length)
    peak = speed = None
    try:
        with torch.random.fork_rng(devices=[torch.cuda.current_device()]):
            _clear(loaded)
            torch.cuda.reset_peak_memory_stats()
            _pass(loaded, longest)
            _pass(loaded, passes[0])
            torch.cuda.synchronize()
            speed = tokens / seconds_of(lambda: _run_all(passes, lambda batch: _pass(loaded, batch)))
            peak = torch.cuda.max_memory_reserved()
    except torch.OutOfMemoryError:
        pass
    _clear(loaded)
    return Trial(candidate, peak, speed)


def _trial_of_graphs(loaded: LoadedModel, candidate: Candidate, rows: Any, by_length: list[int]) -> Trial:
    """As _trial, with captured passes; without a speed where they cannot be captured. Sets the model to it."""
    import torch

    longest, passes, tokens = _step_of(loaded, candidate, rows, by_length)
    learner = learner_of(loaded.recipe)
    amounts, sequences = learner.amounts(passes), candidate.batch * learner.method.sequences_a_row
    longest_row = max(learner.method.lengths_of(_rows(rows, by_length[:1])))
    graphs = PassGraphs(loaded, learner.compute(loaded, loaded.recipe), sequences, longest_row)
    peak = speed = None
    capture_s = 0.0
    try:
        with torch.random.fork_rng(devices=[torch.cuda.current_device()]):
            _clear(loaded)
            torch.cuda.reset_peak_memory_stats()
            _run_all([longest, *passes], lambda batch: graphs.run(batch, amounts))
            began = time.perf_counter()
            _run_all(passes, lambda batch: graphs.run(batch, amounts))
            if graphs.captured:
                capture_s = (time.perf_counter() - began) / graphs.captured
                speed = tokens / seconds_of(lambda: _run_all(passes, lambda batch: graphs.run(batch, amounts)))
                peak = torch.cuda.max_memory_reserved()
    except torch.OutOfMemoryError:
        pass
    graphs.drop()
    _clear(loaded)
    return Trial(candidate, peak, speed, capture_s)


def _step_of(
    loaded: LoadedModel, candidate: Candidate, rows: Any, by_length: list[int]
) -> tuple[dict[str, Any], list[dict[str, Any]], int]:
    """The longest possible pass, and the passes of one step of rows drawn evenly over all lengths, with its tokens."""
    learner = learner_of(loaded.recipe)
    collate = learner.collator(loaded)
    step_rows = candidate.batch * candidate.accumulation
    even = [by_length[(2 * i + 1) * len(by_length) // (2 * step_rows)] for i in range(step_rows)]
    mixed = random.Random(0).sample(even, len(even))
    passes = [collate(_rows(rows, mixed[i : i + candidate.batch])) for i in range(0, step_rows, candidate.batch)]
    tokens = sum(learner.method.lengths_of(_rows(rows, mixed)))
    return collate(_rows(rows, by_length[: candidate.batch])), passes, tokens


def _run_all(passes: Sequence[dict[str, Any]], run: Callable[[dict[str, Any]], Any]) -> None:
    """Run the passes of a step, and wait for the GPU."""
    import torch

    for batch in passes:
        run(batch)
    torch.cuda.synchronize()


def seconds_of(step: Callable[[], None]) -> float:
    """How long `step` takes: the mean of as many runs as it needs to be clear."""
    began = time.perf_counter()
    runs, seconds = 0, 0.0
    while runs < _TIMED_STEPS and seconds < _CLEAR_SECONDS:
        step()
        runs, seconds = runs + 1, time.perf_counter() - began
    return seconds / runs


def _rows(rows: Any, places: list[int]) -> list[Row]:
    return [rows[place] for place in places]


def _pass(loaded: LoadedModel, batch: dict[str, Any]) -> None:
    """One forward and backward pass; the gradients are of no use to anyone."""
    learner_of(loaded.recipe).loss_of(loaded, batch).backward()


def _apply(loaded: LoadedModel, candidate: Candidate) -> None:
    loaded.compiled = candidate.compiled
    loaded.gradient_checkpointing = candidate.checkpointing
    loaded.pass_sizes = ()
    loaded.dequantize_once = candidate.dequantize_once
    loaded.backend.for_training(loaded)


def _clear(loaded: LoadedModel) -> None:
    """Give back the gradients, and the memory that a larger candidate had taken."""
    import torch

    for parameter in loaded.model.parameters():
        parameter.grad = None
    gc.collect()
    torch.cuda.empty_cache()


def _trainable(loaded: LoadedModel) -> int:
    return sum(p.numel() for p in loaded.model.parameters() if p.requires_grad)


def _state_bytes(loaded: LoadedModel, total: int) -> int:
    """What the optimizer's first step will add to what the trials have measured."""
    trainable = _trainable(loaded)
    return (2 if optimizer_name(loaded.recipe, trainable, total) == "adamw_8bit" else 8) * trainable


def _with_train(recipe: Recipe, **changes: Any) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=changes)})
