"""The recipe as a trainer takes it: what every method's trainer is told, and how it saves."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tuitune.backends.loaded import LoadedModel
from tuitune.data.prepare import Prepared
from tuitune.errors import disk_is_full
from tuitune.language import _
from tuitune.machine.precision import gpu_has_bf16
from tuitune.plan.optimizer import optimizer_name
from tuitune.recipe import Recipe
from tuitune.runs.folder import Run
from tuitune.train import checkpoints
from tuitune.train.arguments import settled_arguments
from tuitune.train.control import Control, Emit
from tuitune.train.dealing import passes_a_step
from tuitune.train.graphs import PassGraphs, can_capture
from tuitune.train.held_out import held_out_loss
from tuitune.train.methods import learner_of
from tuitune.train.methods.learner import Collate
from tuitune.train.ranks import ALONE, Ranks
from tuitune.train.room import Room
from tuitune.train.shared_steps import share_gradients, share_rows
from tuitune.train.sizes import pass_sizes
from tuitune.train.steps import queue_steps

if TYPE_CHECKING:
    from transformers import TrainerCallback


def make_trainer(
    loaded: LoadedModel,
    recipe: Recipe,
    prepared: Prepared,
    run: Run,
    callbacks: Sequence["TrainerCallback"],
    control: Control,
    emit: Emit,
    room: Room | None = None,
    ranks: Ranks = ALONE,
) -> Any:
    """The method's trainer for the loaded model, on rows that are tokenised already, with its adapter in fp32.

    `recipe` is what is trained in the end: its rows a pass, passes a step and optimizer. Where the disk fills up while
    a checkpoint is saved, `room` has it saved again once it fits, or left out of a run that stops. With several
    `ranks` it trains this one's share of each step, and the first one saves.
    """
    import torch
    from transformers import PrinterCallback

    on_gpu = loaded.model.device.type == "cuda"
    learner = learner_of(recipe)
    by_graphs = learner.captures and can_capture(loaded)
    captured = by_graphs and recipe.train.cuda_graphs is True
    lengths = learner.method.lengths(prepared.train) if captured or ranks.world > 1 else []
    loaded.pass_sizes = pass_sizes(lengths, recipe.train.per_device_train_batch_size) if captured else ()
    bf16 = on_gpu and gpu_has_bf16()
    trainable = sum(p.numel() for p in loaded.model.parameters() if p.requires_grad)
    total = torch.cuda.mem_get_info()[1] if on_gpu else None
    arguments = dict(
        settled_arguments(recipe),
        gradient_accumulation_steps=passes_a_step(recipe.train, ranks.world),
        run_name=run.name,
        output_dir=str(checkpoints.staged_checkpoints(run)),
        per_device_eval_batch_size=recipe.train.per_device_train_batch_size,
        optim=optimizer_name(recipe, trainable, total),
        use_cpu=not on_gpu,
        bf16=bf16,
        fp16=on_gpu and not bf16,
        gradient_checkpointing=loaded.gradient_checkpointing,
        save_strategy="steps",
        save_steps=recipe.train.save_steps,
        include_num_input_tokens_seen="non_padding",
        dataloader_pin_memory=on_gpu,
        # Rows of like lengths beside each other need little padding.
        train_sampling_strategy="group_by_length" if on_gpu and not loaded.padding_free else "random",
        disable_tqdm=True,
    )
    trainer = learner.make_trainer(loaded, recipe, prepared, arguments, callbacks, control, emit, ranks)
    save = trainer._save_checkpoint

    def save_where_there_is_room(*arguments: Any, **options: Any) -> None:
        if ranks.is_first:
            control.saving.set()  # until the callback has given the checkpoint its name
        while ranks.is_first:
            try:
                save(*arguments, **options)
            except Exception as error:  # safetensors and torch raise kinds of their own
                if room is None or not disk_is_full(error):
                    raise
                if not room.makes_room(error, _("a checkpoint"), room.checkpoint_bytes(trainable)):
                    room.leave_out(trainer.state.global_step)
                    return
            else:
                if room is not None:
                    room.saved()
                return

    trainer._save_checkpoint = save_where_there_is_room
    trainer.remove_callback(PrinterCallback)  # the step events tell the same
    # TRL's trainers turn the adapter of a quantised base to bf16, where small updates are rounded away.
    for parameter in loaded.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if ranks.world > 1:
        share_rows(trainer, loaded, recipe, ranks, lengths, learner)
    if by_graphs:
        sequences = recipe.train.per_device_train_batch_size * learner.method.sequences_a_row
        compute = learner.compute(loaded, recipe)
        learner.queue_steps(trainer, PassGraphs(loaded, compute, sequences, max(lengths, default=1)))
    elif learner.counts_labels and on_gpu and loaded.padding_free:
        queue_steps(trainer, None)
    if learner.counts_labels:
        trainer.evaluate = lambda: _held_out_loss(trainer, loaded, learner.collator(loaded), ranks)
    if ranks.world > 1:
        share_gradients(trainer, loaded, ranks)
    _walk_through_model_once(trainer, loaded)
    _end_with_last_step(trainer)
    return trainer


def _walk_through_model_once(trainer: Any, loaded: LoadedModel) -> None:
    """Have `trainer` keep what it would look up in every module in each pass and step: the trained parameters.

    That takes several milliseconds of a model of 32 layers with its adapters, in which a GPU that waits stands still.
    """
    parameters = loaded.model.num_parameters(exclude_embeddings=True)
    trained: list[Any] = []

    def floating_point_ops(inputs: Any) -> int:
        return 6 * inputs["input_ids"].numel() * parameters if "input_ids" in inputs else 0

    def clip_grad_norm(model: Any) -> Any:
        if not trained:
            trained.extend(parameter for parameter in model.parameters() if parameter.requires_grad)
        return trainer.accelerator.clip_grad_norm_(trained, trainer.args.max_grad_norm)

    trainer.floating_point_ops, trainer._clip_grad_norm = floating_point_ops, clip_grad_norm


def _end_with_last_step(trainer: Any) -> None:
    """Have `trainer` train nothing from a checkpoint of the last step: transformers trains a step, and counts then."""
    samples_of = trainer.get_batch_samples

    def get_batch_samples(*arguments: Any, **options: Any) -> Any:
        if 0 < trainer.state.max_steps <= trainer.state.global_step:
            trainer.control.should_training_stop = True
            return [], None
        return samples_of(*arguments, **options)

    trainer.get_batch_samples = get_batch_samples


def _held_out_loss(trainer: Any, loaded: LoadedModel, collate: Collate, ranks: Ranks) -> dict[str, float]:
    """What the trainer's own evaluation would log, with each trained token counted once."""

    def before_pass() -> None:
        trainer.callback_handler.on_prediction_step(trainer.args, trainer.state, trainer.control)

    batch_rows = trainer.args.per_device_eval_batch_size
    logs = {"eval_loss": held_out_loss(loaded, trainer.eval_dataset, collate, batch_rows, ranks, before_pass)}
    trainer.log(dict(logs))
    return logs
