"""The trainer's steps on a GPU, queued without waiting for it until the loss is read at their end.

While the GPU computes a pass, gradients' norm, clipping and optimizer are queued behind it, and the next step's rows
are made ready. Behind them the loss is copied to the host and the first pass of the next step queued, so that the loss
is told, and whatever follows it queued, while that pass is computed. Each wait in between would leave the GPU idle for
as long as Python takes to queue the next part: of a small step more than half.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tuitune.train.graphs import Figures, PassGraphs

Samples = tuple[list[Any], Any]
"""The batches of a step, and the number of what its loss is a mean over."""
Amounts = Callable[[Any], Sequence[Any]]


def queue_steps(
    trainer: Any,
    graphs: PassGraphs | None,
    amounts: Amounts = lambda number: (number,),
    keep: Callable[[Figures], None] = lambda figures: None,
) -> None:
    """Have `trainer`, whose rows are laid end to end on one GPU, wait once a step; its passes run by `graphs`.

    Batches stay on the CPU until their pass, so that their tokens are counted there. `amounts` are what the loss of the
    newest step whose batches were made is divided by, from the number that came with these; `keep` gets the figures of
    each pass of the step that is logged next.
    """
    import torch

    loader_of, step_of, log_of = trainer.get_train_dataloader, trainer.training_step, trainer._maybe_log_save_evaluate
    device, pad = trainer.args.device, trainer.processing_class.pad_token_id
    ahead = _Ahead(trainer.get_batch_samples, graphs, amounts)

    def get_train_dataloader() -> Any:
        loader = loader_of()
        loader.device = None
        return loader

    def prepare_inputs(inputs: dict[str, Any]) -> dict[str, Any]:
        return {
            name: value.to(device, non_blocking=True) if torch.is_tensor(value) else value
            for name, value in inputs.items()
        }

    def track_num_input_tokens(inputs: dict[str, Any]) -> None:
        trainer.state.num_input_tokens_seen += int((inputs["input_ids"] != pad).sum())

    def training_step(model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
        told = ahead.told_of(inputs)
        if told is None and graphs is not None and num_items_in_batch is not None and _has_rows(inputs):
            if not model.training:
                model.train()
            told = graphs.run(inputs, amounts(num_items_in_batch))
        loss, figures = told or (step_of(model, inputs, num_items_in_batch), {})
        keep(figures)
        ahead.pass_queued()
        return loss

    def maybe_log_save_evaluate(loss: Any, grad_norm: Any, *arguments: Any, **options: Any) -> Any:
        control, state = trainer.control, trainer.state
        if control.should_training_stop or control.should_save or not ahead.has_next_pass:
            return log_of(loss, grad_norm, *arguments, **options)
        told = [value.to("cpu", non_blocking=True) if torch.is_tensor(value) else value for value in (loss, grad_norm)]
        copied = torch.cuda.Event()
        copied.record()
        if control.should_log and state.global_step > trainer._globalstep_last_logged:
            loss.zero_()  # what the trainer does with the loss that it has logged, here a copy
        ahead.queue_next_pass()
        copied.synchronize()
        return log_of(*told, *arguments, **options)

    trainer.get_train_dataloader = get_train_dataloader
    trainer.get_batch_samples = ahead.get_batch_samples
    trainer._prepare_inputs = prepare_inputs
    trainer._track_num_input_tokens = track_num_input_tokens
    trainer._maybe_log_save_evaluate = maybe_log_save_evaluate
    trainer.training_step = training_step
    trainer.graphs = graphs


class _Ahead:
    """The next step's batches and its first pass, made and queued while the GPU is busy with this step."""

    def __init__(self, get_batch_samples: Any, graphs: PassGraphs | None, amounts: Amounts) -> None:
        self._get = get_batch_samples
        self._graphs = graphs
        self._amounts = amounts
        self._asked: tuple[Iterator[Any], int, Any] | None = None
        self._passes = 0
        self._samples: Samples | None = None
        self._queued_pass: tuple[Any, tuple[Any, Figures]] | None = None
        """A batch whose pass is queued already, and its loss and figures."""

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> Samples:
        """The trainer's own of this name, or what it gave for the next step of the same epoch."""
        import torch

        if self._graphs is not None:
            device = torch.device("cpu")  # `graphs` takes the number of labels there; to the GPU it would wait for it
        samples, self._samples = self._samples, None
        if samples is None or self._asked is None or self._asked[0] is not epoch_iterator:
            self._forget()
            samples = self._get(epoch_iterator, num_batches, device)
        self._asked, self._passes = (epoch_iterator, num_batches, device), len(samples[0])
        return samples

    def pass_queued(self) -> None:
        """After the last pass of a step the batches of the next one are made."""
        self._passes -= 1
        if self._passes == 0 and self._asked is not None:
            self._samples = self._get(*self._asked)

    @property
    def has_next_pass(self) -> bool:
        """Whether `queue_next_pass` has a pass to queue."""
        if self._graphs is None or self._samples is None or self._queued_pass is not None:
            return False
        batches, number = self._samples
        return bool(batches) and number is not None and _has_rows(batches[0]) and self._graphs.can_run_ahead

    def queue_next_pass(self) -> None:
        """Queue the next step's first pass, once the optimizer's work is queued.

        It changes gradients alone, so an evaluation or a checkpoint that comes in between is not disturbed.
        """
        assert self._graphs is not None and self._samples is not None
        batches, number = self._samples
        self._queued_pass = batches[0], self._graphs.run(batches[0], self._amounts(number))

    def told_of(self, batch: Any) -> tuple[Any, Figures] | None:
        """Loss and figures of this batch's pass where it is queued already, else None."""
        if self._queued_pass is None or self._queued_pass[0] is not batch:
            self._forget()
            return None
        _, told = self._queued_pass
        self._queued_pass = None
        return told

    def _forget(self) -> None:
        """Drop the gradients of a pass that was queued for a batch which does not come."""
        if self._queued_pass is not None and self._graphs is not None:
            self._graphs.forget_gradients()
        self._queued_pass = None


def _has_rows(batch: Any) -> bool:
    """Whether a process of several has rows in this pass (`Learner.nothing`)."""
    return "packed_seq_lengths" in batch
