"""One training run: from the recipe to a saved adapter, telling what happens as events."""

import gc
import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from tuitune import backends
from tuitune.backends.loaded import LoadedModel
from tuitune.backends.loading import begin_with_adapter
from tuitune.data.prepare import Prepared, prepare
from tuitune.errors import TuituneError, UnusableInput, disk_is_full, explain
from tuitune.language import N_, _, plural
from tuitune.machine.hardware import chosen_gpu
from tuitune.methods import method_of
from tuitune.model.config import load_tokenizer
from tuitune.recipe import Recipe
from tuitune.runs.events import Finished, Notice, Phase, Plan
from tuitune.runs.folder import Run
from tuitune.text import one_line
from tuitune.train import checkpoints
from tuitune.train.autotune import fit, keeps_activations, needs_sharding, with_less_memory
from tuitune.train.best import go_back_to_the_best, tell_of_a_better_one
from tuitune.train.carry import on_every_host, with_initial_adapter
from tuitune.train.control import Control, Emit, NotFinite, Stopped
from tuitune.train.evaluate import Evaluator
from tuitune.train.isolation import Batches, settle_batches
from tuitune.train.methods import Learner, learner_of
from tuitune.train.ranks import ALONE, Ranks
from tuitune.train.resume import (
    Resumption,
    data_digest,
    model_digest,
    newest_whole_checkpoint,
    require_same,
    with_tail_of,
)
from tuitune.train.room import Room
from tuitune.train.trainer import make_trainer
from tuitune.units import size

log = logging.getLogger(__name__)

_LONG_WARM_UP_SECONDS = 10.0


def train(
    recipe: Recipe,
    run: Run,
    control: Control,
    emit: Emit,
    *,
    resumed: Resumption | None = None,
    ranks: Ranks = ALONE,
) -> LoadedModel | None:
    """Train the recipe's adapter into `run.adapter` and return the model for chat and export.

    Emits everything up to `Finished`; the caller reports a failure. Returns None where the run was stopped before a
    model was loaded. A run that is `resumed` goes on from its checkpoint. Raises TuituneError (UnusableInput where
    data or base model have changed since), or whatever the libraries raise.

    With several `ranks` each of their processes calls this, with a SharedControl: the first one alone emits and writes.
    Where memory runs out, all must then be begun anew, and torch.OutOfMemoryError is raised.
    """
    began = time.monotonic()
    room = Room(run, control, emit)
    emit = room.emit
    attempt = resumed.attempt if resumed else 1
    adapter_saved = False
    checkpoint = on_every_host(resumed.checkpoint, run, ranks) if resumed else None

    def phase(name: Any, text: str, done: int | None = None, total: int | None = None) -> None:
        emit(Phase(name=name, text=text, done=done, total=total))

    def finished(status: Literal["done", "stopped", "paused"], step: int, adapter_step: int | None = None) -> None:
        if status == "stopped" and control.pause.is_set() and not adapter_saved:
            status = "paused"
        saved = "adapter" if run.adapter.is_dir() else None
        seconds = time.monotonic() - began
        emit(Finished(status=status, step=step, seconds=seconds, adapter=saved, adapter_step=adapter_step))

    reading = _("Reading and tokenising the data")
    phase("data", reading)
    tokenizer = load_tokenizer(recipe.model)
    prepared = prepare(
        recipe,
        tokenizer,
        progress=_at_most_every(0.2, lambda done, total: phase("data", reading, done, total)),
        cancelled=control.is_asked_to_stop,
    )
    control.agree()
    if control.stop.is_set():
        finished("stopped", 0)
        return None
    _require_the_same_everywhere(recipe, prepared, ranks)
    recipe = with_initial_adapter(recipe, run, ranks)
    _tell_about(prepared, emit)
    learner = learner_of(recipe)
    learner.require(recipe, prepared)
    phase("model", _("Loading the model in 4-bit") if recipe.model.load_in_4bit else _("Loading the model"))
    is_shared = needs_sharding(recipe, prepared.train, ranks)
    loaded = backends.load(
        recipe,
        lambda text: emit(Notice(text=text)),
        lambda text, done, total: phase("model", text, done, total),
        peers=ranks if is_shared else None,
    )
    if is_shared:
        emit(_sharing_of(loaded, ranks))
    loaded.thinks = prepared.thinking
    backend = loaded.backend
    phase("adapter", _("Adding the LoRA adapter"))
    backend.attach(loaded)
    for text in loaded.targets.left_out if loaded.targets else ():
        emit(Notice(text=text))
    on_gpu = loaded.model.device.type == "cuda"
    batches = _settle(loaded, learner, prepared, emit, ranks) if on_gpu else None
    if recipe.train.fit and learner.fits and on_gpu and not is_shared:
        phase("adapter", _("Timing ways to run a step on this GPU"))
        recipe = _fit(loaded, recipe, prepared, run, control, emit, ranks)
    elif on_gpu and recipe.train.gradient_checkpointing == "auto":
        loaded.gradient_checkpointing = not keeps_activations(loaded, prepared.train)

    # Not before Unsloth, which changes the trainer that these import.
    from tuitune.train.callbacks import RunCallback
    from tuitune.train.reporting import reporters

    first_step = checkpoints.step_of(checkpoint) if checkpoint else 0
    measured = resumed.measured if resumed else ()
    evaluator = Evaluator(loaded, recipe, prepared, control, emit, attempt, measured, ranks)
    room.best = lambda: evaluator.best
    callback = RunCallback(run, control, emit, evaluator, attempt, first_step, ranks)
    callbacks = [callback, *(reporters(recipe, run, emit) if ranks.is_first else [])]

    def new_trainer(recipe: Recipe) -> Any:
        return make_trainer(loaded, recipe, prepared, run, callbacks, control, emit, room, ranks)

    evaluator.trainer = new_trainer(recipe)
    if recipe.lora.init_adapter is not None:
        begin_with_adapter(loaded, recipe.lora.init_adapter)  # once the trainer has turned the adapter to fp32
    require_trainable(loaded)
    trained = {name: p for name, p in loaded.model.named_parameters() if p.requires_grad}
    loaded.begun = {name: parameter.detach().to("cpu", copy=True) for name, parameter in trained.items()}
    plan = _plan(loaded, recipe, prepared, batches, ranks)
    if resumed and resumed.plan:
        require_same(resumed.plan, plan, run)
    emit(plan)
    status: Literal["done", "stopped"] = "stopped"
    adapter_step = None
    asking = _("Asking the model as it is for its log-probabilities")
    tell = _at_most_every(0.2, lambda done, total: phase("before", asking, done, total))

    def asked_to_stop() -> bool:
        control.agree()
        return control.stop.is_set()

    try:
        if not learner.before_training(loaded, recipe, prepared, plan.model_digest, tell, asked_to_stop, ranks):
            raise Stopped
        if loaded.reference:  # rows look it up as they are drawn
            evaluator.trainer = new_trainer(recipe)
        if checkpoint is None:
            phase("before", _("Measuring the model before training"))
            evaluator.measure(0)
        control.agree()
        if not control.stop.is_set():
            going_on = (
                _("Going on from {checkpoint}", checkpoint=checkpoint.name)
                if checkpoint
                else _("Training; the first step takes the longest")
            )
            phase("training", going_on)
            backend.for_training(loaded)
            _train_to_the_end(evaluator, loaded, recipe, run, plan, new_trainer, control, emit, checkpoint, ranks)
            if evaluator.stopped_early:
                adapter_step = go_back_to_the_best(evaluator, loaded, run, emit, ranks)
            if not control.pause.is_set() or callback.steps_done >= evaluator.trainer.state.max_steps:
                phase("saving", _("Saving the adapter"))
                if ranks.is_first:
                    control.saving.set()
                    _save_where_there_is_room(loaded, run, room, plan.trainable_parameters)
                    control.saving.clear()
                adapter_saved = True
            control.agree()
            if not control.stop.is_set():
                status = "done"
                phase("after", _("Measuring the model after training"))
                try:
                    if adapter_step is None:
                        evaluator.measure(callback.steps_done)
                    else:
                        evaluator.measure(adapter_step, loss=False)  # known since it was trained
                    tell_of_a_better_one(evaluator, run, emit)
                except NotFinite:
                    raise
                except Exception as error:  # whatever it is, the training is done and its adapter saved
                    if evaluator.others_wait:
                        raise
                    log.error("measuring the trained model failed", exc_info=error)
                    reason = one_line(explain(error), max_length=300)
                    emit(
                        Notice(
                            text=_(
                                "The adapter is saved, but measuring it failed ({reason}): chat with it instead.",
                                reason=reason,
                            )
                        )
                    )
    except Stopped:
        pass
    finally:
        loaded.dequantize_once = False  # for training alone
        if ranks.is_first:
            checkpoints.tidy(run)  # a save that failed may have left half a one
    backend.for_inference(loaded)
    finished(status, callback.steps_done, adapter_step)
    return loaded


def _sharing_of(loaded: LoadedModel, ranks: Ranks) -> Notice:
    return Notice(
        text=_(
            "{cards} cards share the frozen weights ({size}): each holds its part, and gets the others' as it "
            "computes. Ways to run a step are not timed.",
            cards=ranks.world,
            size=size(loaded.shards.shared_bytes),
        )
    )


def _require_the_same_everywhere(recipe: Recipe, prepared: Prepared, ranks: Ranks) -> None:
    """Refuse hosts whose data or base model is not the first one's. Raises UnusableInput."""
    if not ranks.span_hosts:
        return
    for what, digest in ((N_("data"), data_digest(prepared)), (N_("base model"), model_digest(recipe.model))):
        if other := ranks.unlike_the_first(digest):
            places = list(dict.fromkeys(ranks.places[rank] for rank in other))
            path = recipe.data.path if what == "data" else recipe.model.name
            raise UnusableInput(
                "The {what} in {path} is not the same on host {hosts} as on the first one: copy it from there.",
                what=_(what),
                path=one_line(path, max_length=200),
                hosts=places,
            )


def _settle(loaded: LoadedModel, learner: Learner, prepared: Prepared, emit: Emit, ranks: Ranks) -> Batches:
    """Prove on the model itself how its rows can be batched, and tell where they are not laid end to end."""
    batches = settle_batches(
        loaded,
        learner.isolation_rows(prepared.train),
        lambda text: emit(Phase(name="adapter", text=text, done=None, total=None)),
        learner.sequence_pass,
    )
    warm_up = batches.isolation.warm_up_seconds
    if warm_up > _LONG_WARM_UP_SECONDS:
        emit(
            Notice(
                text=_(
                    "The model's kernels were compiled in {seconds:.0f} s; the next run finds them.", seconds=warm_up
                )
            )
        )
    (pads_somewhere,) = ranks.any(batches.kind == "padded")
    if pads_somewhere and batches.kind != "padded":
        loaded.padding_free = False
        notice = _("Rows are padded, because they must be on another card.")
        batches = replace(batches, kind="padded", notice=notice)
    if batches.notice:
        emit(Notice(text=batches.notice))
    return batches


def _fit(
    loaded: LoadedModel,
    recipe: Recipe,
    prepared: Prepared,
    run: Run,
    control: Control,
    emit: Emit,
    ranks: Ranks,
) -> Recipe:
    """The recipe with the fastest way to run a step, kept with the run so that a rerun is exact."""

    def cancelled() -> bool:
        control.agree()
        return control.stop.is_set()

    fitted = fit(loaded, prepared.train, cancelled=cancelled, ranks=ranks)
    if fitted is None:
        return recipe
    if ranks.is_first:
        run.keep_resolved(fitted.recipe)
    emit(Notice(text=fitted.describe(loaded.attention)))
    return fitted.recipe


def _train_to_the_end(
    evaluator: Evaluator,
    loaded: LoadedModel,
    recipe: Recipe,
    run: Run,
    plan: Plan,
    new_trainer: Callable[[Recipe], Any],
    control: Control,
    emit: Emit,
    checkpoint: Path | None,
    ranks: Ranks,
) -> None:
    """Train, from the checkpoint if there is one; where memory runs out, from the last one in passes of half the size.

    Rows a step, and so the training itself, stay the same by that. Where the recipe is changed on the way, the training
    goes on by the new one from a checkpoint of the step that it was changed at, as a resumed run would. The evaluator's
    trainer is the one that reached the end.
    """
    import torch

    while True:
        trainer = evaluator.trainer
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            step, out_of_memory = trainer.state.global_step, False
        except torch.OutOfMemoryError:
            if ranks.world > 1:  # the others are in the middle of a step, and would wait for this process for ever
                raise
            step, out_of_memory = trainer.state.global_step, True
        if not out_of_memory:
            wanted, control.recipe = control.recipe, None
            if wanted is not None:
                recipe = with_tail_of(recipe, wanted)
                if ranks.is_first:
                    run.keep_resolved(recipe)
                total_steps = max(step, method_of(recipe).steps_of_run(recipe, plan.rows))
                emit(replace(plan, at=time.time(), total_steps=total_steps))
            if wanted is None or control.stop.is_set() or evaluator.stopped_early:
                return
            if 0 < recipe.train.max_steps <= step:
                return
        else:
            hungry, recipe = recipe, with_less_memory(recipe)
            loaded.dequantize_once = False
        trainer.accelerator.free_memory()  # or what the failed step held stays taken
        trainer.optimizer = trainer.lr_scheduler = None
        gc.collect()
        torch.cuda.empty_cache()
        checkpoint = on_every_host(newest_whole_checkpoint(run, emit), run, ranks)
        if out_of_memory:
            run.keep_resolved(recipe)
            tell_less_memory(hungry, recipe, step, checkpoint, emit)
        evaluator.recipe = recipe
        loaded.backend.for_training(loaded)
        evaluator.trainer = new_trainer(recipe)
        for name, parameter in loaded.model.named_parameters():
            if checkpoint is None and name in loaded.begun:
                parameter.data.copy_(loaded.begun[name])
            parameter.grad = None


def require_trainable(loaded: LoadedModel) -> None:
    """Refuse a model of which nothing would be trained, as one with an adapter loaded for use. Raises TuituneError."""
    if not any(parameter.requires_grad for parameter in loaded.model.parameters()):
        raise TuituneError("Nothing of this model would be trained: its adapter is frozen; train a new run from it.")


def tell_less_memory(hungry: Recipe, recipe: Recipe, step: int, checkpoint: Path | None, emit: Emit) -> None:
    """Tell how a run goes on by `recipe` after memory ran out by `hungry` in the step that follows `step`."""
    train = recipe.train
    split = [
        _(
            "{batch} × {accumulation} rows a step",
            batch=train.per_device_train_batch_size,
            accumulation=train.gradient_accumulation_steps,
        )
    ]
    if train.per_device_train_batch_size == hungry.train.per_device_train_batch_size:
        split.append(_("without CUDA graphs and dequantised weights"))
    where = checkpoint.name if checkpoint else _("the start")
    emit(
        Notice(
            text=_(
                "Memory ran out at step {step}: going on from {where} with {split}.",
                step=step + 1,
                where=where,
                split=split,
            )
        )
    )


def _save_where_there_is_room(loaded: LoadedModel, run: Run, room: Room, trainable_parameters: int) -> None:
    while True:
        try:
            save_adapter(loaded, run)
            return
        except Exception as error:
            if not disk_is_full(error) or not room.makes_room(error, _("the adapter"), 4 * trainable_parameters):
                raise


def save_adapter(loaded: LoadedModel, run: Run) -> None:
    """Write adapter and tokenizer to `run.adapter`; an adapter that was there before stays until this one is whole."""
    staged = checkpoints.staged_adapter(run)
    loaded.model.save_pretrained(staged, safe_serialization=True)
    loaded.tokenizer.save_pretrained(staged)
    checkpoints.keep_adapter(run)


def _at_most_every(seconds: float, call: Callable[..., None]) -> Callable[..., None]:
    last = 0.0

    def limited(*arguments: Any) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            call(*arguments)

    return limited


def _tell_about(prepared: Prepared, emit: Emit) -> None:
    for reason, rows in prepared.dropped.items():
        emit(
            Notice(
                text=plural(
                    "{count} row is left out: {reason} (row {row}).",
                    "{count} rows are left out: {reason} (first: row {row}).",
                    rows.count,
                    reason=reason,
                    row=rows.examples[0],
                )
            )
        )
    if prepared.truncated:
        emit(
            Notice(
                text=plural(
                    "{count} row is longer than data.max_length and is cut.",
                    "{count} rows are longer than data.max_length and are cut.",
                    prepared.truncated,
                )
            )
        )
    for notice in prepared.notices:
        emit(Notice(text=notice))


def _plan(
    loaded: LoadedModel,
    recipe: Recipe,
    prepared: Prepared,
    batches: Batches | None,
    ranks: Ranks,
) -> Plan:
    import torch

    cards = _cards_of(ranks)
    parameters = list(loaded.model.parameters())
    device = loaded.model.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return Plan(
        backend=loaded.backend.name,
        device=f"{len(cards)} × {name}" if cards else name,
        cards=cards,
        hosts=tuple(ranks.places) if ranks.span_hosts else (),
        rows=len(prepared.train),
        eval_rows=len(prepared.eval) if prepared.eval is not None else 0,
        dropped_rows=sum(rows.count for rows in prepared.dropped.values()),
        tokens=prepared.tokens,
        trained_tokens=prepared.trained_tokens,
        trainable_parameters=sum(p.numel() for p in parameters if p.requires_grad),
        total_parameters=loaded.model.num_parameters(),
        total_steps=method_of(recipe).steps_of_run(recipe, len(prepared.train)),
        thinking=loaded.thinks,
        target_modules=loaded.targets.names if loaded.targets else (),
        batches=batches.kind if batches else "padded",
        attention=loaded.attention,
        method=recipe.method.name,
        data_digest=data_digest(prepared),
        model_digest=model_digest(loaded.recipe.model),
        isolation=_finite(batches.isolation.as_dict()) if batches else {},
    )


def _cards_of(ranks: Ranks) -> tuple[int, ...]:
    """The index of each process's card; of processes on the CPU their rank."""
    card = chosen_gpu()
    return ranks.gathered(card.index if card else ranks.rank) if ranks.world > 1 else ()


def _finite(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if math.isfinite(value)}
