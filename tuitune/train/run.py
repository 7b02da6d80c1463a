"""One training run: from the recipe to a saved adapter, telling what happens as events."""

import gc
import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tuitune import backends
from tuitune.atomic import write_atomic
from tuitune.backends import LoadedModel
from tuitune.backends.loftq import require_loftq
from tuitune.chat.reply import Sampling, reply
from tuitune.data.prepare import Prepared, prepare
from tuitune.errors import TuituneError, explain
from tuitune.model.config import load_tokenizer, require_weights
from tuitune.plan.optimizer import optimizer_name
from tuitune.recipe import Recipe
from tuitune.runs.events import Checkpoint, Evaluation, Event, Finished, Notice, Phase, Plan, Reply, Step
from tuitune.runs.folder import Run
from tuitune.text import one_line
from tuitune.train import checkpoints
from tuitune.train.autotune import fit, halved
from tuitune.train.batching import collator
from tuitune.train.isolation import Batches, settle_batches

log = logging.getLogger(__name__)

Emit = Callable[[Event], None]
_LONG_WARM_UP_SECONDS = 10.0


@dataclass
class Control:
    """What another thread may ask of a run."""

    stop: threading.Event = field(default_factory=threading.Event)
    """End after this step, with a checkpoint and the adapter saved."""
    now: threading.Event = field(default_factory=threading.Event)
    """End as soon as the code can; what was saved before stays."""
    save: threading.Event = field(default_factory=threading.Event)
    """Save a checkpoint after this step."""


class Stopped(Exception):
    """Raised inside the trainer to leave a step or an evaluation that was asked to end."""


def check(recipe: Recipe) -> None:
    """Refuse, before a run folder is made, what can be refused at once. Raises UnusableInput."""
    from tuitune.data import open_dataset
    from tuitune.model.config import training_config

    require_weights(recipe.model)
    open_dataset(recipe.data)
    training_config(recipe)
    require_loftq(recipe)


def train(recipe: Recipe, run: Run, control: Control, emit: Emit, *, attempt: int = 1) -> LoadedModel | None:
    """Train the recipe's adapter into `run.adapter` and return the model for chat and export.

    Emits everything up to `Finished`; the caller reports a failure. Returns None where the run was stopped before a
    model was loaded. Raises TuituneError, or whatever the libraries raise.
    """
    began = time.monotonic()

    def phase(name: Any, text: str, done: int | None = None, total: int | None = None) -> None:
        emit(Phase(name=name, text=text, done=done, total=total))

    def finished(status: Literal["done", "stopped"], step: int) -> None:
        saved = "adapter" if run.adapter.is_dir() else None
        emit(Finished(status=status, step=step, seconds=time.monotonic() - began, adapter=saved))

    phase("data", "Reading and tokenising the data")
    tokenizer = load_tokenizer(recipe.model)
    prepared = prepare(
        recipe,
        tokenizer,
        progress=_at_most_every(0.2, lambda done, total: phase("data", "Reading and tokenising the data", done, total)),
        cancelled=control.stop.is_set,
    )
    if control.stop.is_set():
        finished("stopped", 0)
        return None
    _tell_about(prepared, emit)
    phase("model", "Loading the model" + (" in 4-bit" if recipe.model.load_in_4bit else ""))
    loaded = backends.load(
        recipe, lambda text: emit(Notice(text=text)), lambda text, done, total: phase("model", text, done, total)
    )
    loaded.thinks = prepared.thinking
    backend = loaded.backend
    phase("adapter", "Adding the LoRA adapter")
    backend.attach(loaded)
    for text in loaded.targets.left_out if loaded.targets else ():
        emit(Notice(text=text))
    on_gpu = loaded.model.device.type == "cuda"
    batches = _settle(loaded, prepared, emit) if on_gpu else None
    if recipe.train.fit and on_gpu:
        phase("adapter", "Timing ways to run a step on this GPU")
        _fit(loaded, prepared, run, control, emit)
        recipe = loaded.recipe

    watcher = _Watcher(run, control, emit, attempt)
    trainer = _trainer(loaded, prepared, run, watcher)
    emit(_plan(loaded, prepared, trainer, batches))
    status: Literal["done", "stopped"] = "stopped"
    try:
        prompts = _prompts(recipe, prepared)
        phase("before", "Measuring the model before training")
        _evaluate(trainer, emit, attempt, 0)
        _answer(loaded, prompts, recipe, emit, control, 0)
        if not control.stop.is_set():
            phase("training", "Training; the first step takes the longest")
            backend.for_training(loaded)
            trainer = _train_to_the_end(trainer, loaded, prepared, run, watcher)
            phase("saving", "Saving the adapter")
            save_adapter(loaded, run)
            if not control.stop.is_set():
                status = "done"
                phase("after", "Measuring the model after training")
                try:
                    _evaluate(trainer, emit, attempt, trainer.state.global_step)
                    _answer(loaded, prompts, recipe, emit, control, trainer.state.global_step)
                except Exception as error:  # whatever it is, the training is done and its adapter saved
                    log.error("measuring the trained model failed", exc_info=error)
                    reason = one_line(explain(error), max_length=300)
                    emit(
                        Notice(text=f"The adapter is saved, but measuring it failed ({reason}): chat with it instead.")
                    )
    except Stopped:
        pass
    finally:
        checkpoints.tidy(run)  # a save that failed may have left half a one
    backend.for_inference(loaded)
    finished(status, watcher.steps_done)
    return loaded


def _settle(loaded: LoadedModel, prepared: Prepared, emit: Emit) -> Batches:
    """Prove on the model itself how its rows can be batched, and tell where they are not laid end to end."""
    batches = settle_batches(
        loaded, prepared.train, lambda text: emit(Phase(name="adapter", text=text, done=None, total=None))
    )
    warm_up = batches.isolation.warm_up_seconds
    if warm_up > _LONG_WARM_UP_SECONDS:
        emit(Notice(text=f"The model's kernels were compiled in {warm_up:.0f} s; the next run finds them."))
    if batches.notice:
        emit(Notice(text=batches.notice))
    return batches


def _fit(loaded: LoadedModel, prepared: Prepared, run: Run, control: Control, emit: Emit) -> None:
    """Take the fastest way to run a step, and write it into the recipe, so that a rerun is exact."""
    fitted = fit(loaded, prepared.train, cancelled=control.stop.is_set)
    if fitted is not None:
        write_atomic(run.recipe_file, fitted.recipe.to_yaml())
        emit(Notice(text=fitted.describe(loaded.attention)))


def _train_to_the_end(trainer: Any, loaded: LoadedModel, prepared: Prepared, run: Run, watcher: "_Watcher") -> Any:
    """Train; where memory runs out, go back to the last checkpoint and go on in passes of half the size.

    Returns the trainer that reached the end. Rows a step, and so the training itself, stay the same.
    """
    import torch

    first = {name: p.detach().to("cpu", copy=True) for name, p in loaded.model.named_parameters() if p.requires_grad}
    checkpoint: Path | None = None
    while True:
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            return trainer
        except torch.OutOfMemoryError:
            step = trainer.state.global_step
        loaded.recipe = halved(loaded.recipe)
        trainer.accelerator.free_memory()  # or what the failed step held stays taken
        trainer.optimizer = trainer.lr_scheduler = None
        gc.collect()
        torch.cuda.empty_cache()
        checkpoint = _newest_whole_checkpoint(run, watcher.emit)
        if checkpoint is None:
            for name, parameter in loaded.model.named_parameters():
                if name in first:
                    parameter.data.copy_(first[name])
                parameter.grad = None
        write_atomic(run.recipe_file, loaded.recipe.to_yaml())
        settings = loaded.recipe.train
        split = f"{settings.per_device_train_batch_size} × {settings.gradient_accumulation_steps} rows a step"
        where = checkpoint.name if checkpoint else "the start"
        watcher.emit(Notice(text=f"Memory ran out at step {step + 1}: going on from {where} with {split}."))
        loaded.backend.for_training(loaded)
        trainer = _trainer(loaded, prepared, run, watcher)


def _newest_whole_checkpoint(run: Run, emit: Emit) -> Path | None:
    """The newest checkpoint that is as it was saved; damaged ones are told about and passed over."""
    for checkpoint in reversed(checkpoints.checkpoints_of(run)):
        problem = checkpoints.damage(checkpoint)
        if problem is None:
            return checkpoint
        emit(Notice(text=f"{checkpoint.name} is damaged and passed over: {problem}."))
    return None


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
        emit(Notice(text=f"{rows.count} rows are left out: {reason} (first: row {rows.examples[0]})."))
    if prepared.truncated:
        emit(Notice(text=f"{prepared.truncated} rows are longer than data.max_length and are cut."))
    for notice in prepared.notices:
        emit(Notice(text=notice))


def _plan(loaded: LoadedModel, prepared: Prepared, trainer: Any, batches: Batches | None) -> Plan:
    import torch

    parameters = list(loaded.model.parameters())
    args = trainer.args
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps
    by_epochs = math.ceil(args.num_train_epochs * math.ceil(len(prepared.train) / per_step))
    device = loaded.model.device
    return Plan(
        backend=loaded.backend.name,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        rows=len(prepared.train),
        eval_rows=len(prepared.eval) if prepared.eval is not None else 0,
        dropped_rows=sum(rows.count for rows in prepared.dropped.values()),
        tokens=prepared.tokens,
        trained_tokens=prepared.trained_tokens,
        trainable_parameters=sum(p.numel() for p in parameters if p.requires_grad),
        total_parameters=loaded.model.num_parameters(),
        total_steps=args.max_steps if args.max_steps > 0 else by_epochs,
        thinking=loaded.thinks,
        target_modules=loaded.targets.names if loaded.targets else (),
        batches=batches.kind if batches else "padded",
        attention=loaded.attention,
        isolation=_finite(batches.isolation.as_dict()) if batches else {},
    )


def _finite(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _trainer(loaded: LoadedModel, prepared: Prepared, run: Run, watcher: "_Watcher") -> Any:
    import torch
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    settings = loaded.recipe.train
    on_gpu = loaded.model.device.type == "cuda"
    bf16 = on_gpu and torch.cuda.get_device_capability()[0] >= 8
    trainable = sum(p.numel() for p in loaded.model.parameters() if p.requires_grad)
    total = torch.cuda.mem_get_info()[1] if on_gpu else None
    trainer = SFTTrainer(
        model=loaded.model,
        processing_class=loaded.tokenizer,
        train_dataset=prepared.train,
        eval_dataset=prepared.eval,
        data_collator=collator(loaded),
        callbacks=[watcher.callback()],
        args=SFTConfig(
            output_dir=str(checkpoints.staged_checkpoints(run)),
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            max_steps=settings.max_steps,
            num_train_epochs=settings.num_train_epochs,
            per_device_train_batch_size=settings.per_device_train_batch_size,
            per_device_eval_batch_size=settings.per_device_train_batch_size,
            gradient_accumulation_steps=settings.gradient_accumulation_steps,
            learning_rate=settings.learning_rate,
            lr_scheduler_type=settings.lr_scheduler_type,
            warmup_steps=settings.warmup_steps,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            router_aux_loss_coef=0.0,  # it would count filling too, and is for routers, which stay frozen
            seed=settings.seed,
            optim=optimizer_name(loaded.recipe, trainable, total),
            use_cpu=not on_gpu,
            bf16=bf16,
            fp16=on_gpu and not bf16,
            gradient_checkpointing=loaded.gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="steps",
            save_steps=settings.save_steps,
            include_num_input_tokens_seen="non_padding",
            dataloader_pin_memory=on_gpu,
            # Rows of like lengths beside each other need little padding.
            train_sampling_strategy="group_by_length" if on_gpu and not loaded.padding_free else "random",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=True,
        ),
    )
    trainer.remove_callback(PrinterCallback)  # the step events tell the same
    # SFTTrainer turns the adapter of a quantised base to bf16, where small updates are rounded away.
    for parameter in loaded.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer


def _evaluate(trainer: Any, emit: Emit, attempt: int, step: int) -> None:
    """Measure the held-out loss, in batches of half the size where memory runs out; a stop leaves it out."""
    import torch

    while trainer.eval_dataset is not None and len(trainer.eval_dataset):
        try:
            loss = float(trainer.evaluate()["eval_loss"])
            emit(Evaluation(attempt=attempt, step=step, loss=loss))
            return
        except Stopped:
            return
        except torch.OutOfMemoryError:
            if trainer.args.per_device_eval_batch_size == 1:
                emit(
                    Notice(
                        text="The held-out loss is left out, because a single row does not fit into the GPU's memory: "
                        "lower data.max_length."
                    )
                )
                return
        trainer.args.per_device_eval_batch_size //= 2
        gc.collect()  # after the exception, whose frames hold what the failed batch took
        torch.cuda.empty_cache()


def _prompts(recipe: Recipe, prepared: Prepared) -> list[Any]:
    if recipe.samples.prompts:
        return [[{"role": "user", "content": prompt}] for prompt in recipe.samples.prompts]
    return list(prepared.prompts(3))


def _answer(loaded: LoadedModel, prompts: list[Any], recipe: Recipe, emit: Emit, control: Control, step: int) -> None:
    sampling = Sampling(max_new_tokens=recipe.samples.max_new_tokens)
    for messages in prompts:
        if control.stop.is_set():
            return
        try:
            answer = reply(loaded, messages, sampling, cancelled=control.stop.is_set)
        except TuituneError as error:
            if step == 0:
                emit(Notice(text=f"No reply to {one_line(messages[-1]['content'], max_length=60)!r}. {error}"))
            continue
        emit(Reply(step=step, prompt=messages[-1]["content"], reply=answer.text))


class _Watcher:
    """What happens beside the trainer: events out, stop and save in, checkpoints made whole."""

    def __init__(self, run: Run, control: Control, emit: Emit, attempt: int) -> None:
        self.run = run
        self.control = control
        self.emit = emit
        self.attempt = attempt
        self.steps_done = 0
        self._began = time.monotonic()
        self._step_began = 0.0
        self._tokens = 0

    def callback(self) -> Any:
        """A TrainerCallback; made here so that importing this module does not import transformers."""
        from transformers import TrainerCallback

        watcher = self

        class Callback(TrainerCallback):  # type: ignore[misc]
            def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                watcher._tokens = int(state.num_input_tokens_seen)

            def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                watcher.leave_if_asked()
                watcher._step_began = time.monotonic()

            def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                watcher.leave_if_asked()

            def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if watcher.control.stop.is_set():  # an evaluation can be left without losing what was trained
                    raise Stopped

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if watcher.control.stop.is_set():
                    control.should_save = control.should_training_stop = True
                if watcher.control.save.is_set():
                    watcher.control.save.clear()
                    control.should_save = True
                if state.global_step >= state.max_steps:
                    control.should_save = True

            def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
                if logs and "loss" in logs:
                    watcher.step(state, logs)

            def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                watcher.checkpoint(state.global_step)

        return Callback()

    def leave_if_asked(self) -> None:
        if self.control.now.is_set():
            raise Stopped

    def step(self, state: Any, logs: dict[str, Any]) -> None:
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise TuituneError(
                f"The loss is {loss} at step {state.global_step}: lower train.learning_rate, or train in 16-bit; "
                "earlier checkpoints are kept."
            )
        self.steps_done = state.global_step
        seconds = max(1e-9, time.monotonic() - self._step_began)
        seen = int(state.num_input_tokens_seen)
        tokens, self._tokens = seen - self._tokens, seen
        self.emit(
            Step(
                attempt=self.attempt,
                step=state.global_step,
                total_steps=state.max_steps,
                epoch=float(state.epoch or 0),
                loss=loss,
                grad_norm=float(logs["grad_norm"]) if "grad_norm" in logs else None,
                learning_rate=float(logs["learning_rate"]) if "learning_rate" in logs else None,
                tokens=tokens,
                tokens_per_second=tokens / seconds,
                elapsed_s=time.monotonic() - self._began,
            )
        )

    def checkpoint(self, step: int) -> None:
        checkpoint = checkpoints.keep_checkpoint(self.run, step)
        self.emit(Checkpoint(attempt=self.attempt, step=step, path=str(checkpoint.relative_to(self.run.folder))))
