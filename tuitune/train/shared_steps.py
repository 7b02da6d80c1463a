"""Each optimizer step of a run shared by several processes: rows dealt out, tokens, gradients and loss added up."""

import time
from typing import Any

from tuitune.backends.loaded import LoadedModel
from tuitune.errors import TuituneError
from tuitune.recipe import Recipe
from tuitune.train.dealing import DealtBatches, WholeSteps
from tuitune.train.methods import Learner
from tuitune.train.ranks import Ranks


def share_rows(
    trainer: Any, loaded: LoadedModel, recipe: Recipe, ranks: Ranks, lengths: list[int], learner: Learner
) -> None:
    """Have `trainer`, which knows of one process alone, make batches of its share of each step's rows.

    `lengths` are the tokens of each training row. What a pass's loss is divided by is the step's trained tokens,
    wherever they are.
    """
    loader_of, samples_of = trainer.get_train_dataloader, trainer.get_batch_samples

    def get_train_dataloader() -> Any:
        return _dealt(loader_of(), loaded, recipe, ranks, lengths, learner)

    def get_batch_samples(epoch_iterator: Any, num_batches: int, device: Any = None) -> tuple[list[Any], Any]:
        import torch

        on_host = torch.device("cpu")  # where the batches are, so that counting them waits for no GPU
        samples, items = samples_of(epoch_iterator, num_batches, on_host)
        if not samples:  # at an epoch's end, which all reach at once
            return samples, items
        total, uncounted = ranks.totals(float(items) if items is not None else 0.0, items is None)
        if uncounted:
            raise TuituneError("The loss of this model cannot be shared by several cards: train it on one.")
        return samples, torch.tensor(int(total), device=device or on_host)

    trainer.get_train_dataloader = get_train_dataloader
    trainer.get_batch_samples = get_batch_samples


def share_gradients(trainer: Any, loaded: LoadedModel, ranks: Ranks) -> None:
    """Have `trainer` add up losses and gradients of all processes after its last pass of each step, before clipping."""
    step_of = trainer.training_step
    clock = StepClock(loaded.model.device.type == "cuda")
    losses: list[Any] = []

    def training_step(model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
        if not losses:
            clock.begin()
        loss = step_of(model, inputs, num_items_in_batch)
        losses.append(loss.detach().clone())
        if not trainer.accelerator.sync_gradients:  # more passes of this step are to come
            return loss.new_zeros(())
        own_loss = sum(losses[1:], losses[0])
        losses.clear()
        clock.end()
        total = _add_up(loaded.model, own_loss, ranks)
        clock.begin_next()
        return total

    trainer.training_step = training_step
    trainer.step_clock = clock


class StepClock:
    """How long this process worked for the newest step, from when all had come to the end of the one before.

    So it counts what the process does ahead of a step, too.
    """

    def __init__(self, on_gpu: bool) -> None:
        self._on_gpu = on_gpu
        self._began: Any = None
        self._newest: tuple[Any, Any] | None = None

    def begin(self) -> None:
        """The very first step begins."""
        if self._began is None:
            self._began = self._now()

    def end(self) -> None:
        self._newest = self._began, self._now()

    def begin_next(self) -> None:
        self._began = self._now()

    @property
    def seconds(self) -> float:
        """Seconds of the newest step. Call it after the step's loss was read, so that it need not wait for the GPU."""
        if self._newest is None:
            return 0.0
        began, ended = self._newest
        return float(began.elapsed_time(ended) / 1000 if self._on_gpu else ended - began)

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _dealt(loader: Any, loaded: LoadedModel, recipe: Recipe, ranks: Ranks, lengths: list[int], learner: Learner) -> Any:
    """A loader of this process's passes, in place of the trainer's own, whose order of rows it takes."""
    from torch.utils.data import DataLoader

    collate = loader.collate_fn

    class Loader(DataLoader):  # type: ignore[misc]  # torch is untyped
        def set_epoch(self, epoch: int) -> None:
            batches.set_epoch(epoch)

    order, train = loader.batch_sampler.sampler, recipe.train
    batches: DealtBatches | WholeSteps
    if learner.divides_steps:
        batches = WholeSteps(order, train, ranks.world, ranks.share)
    else:
        batches = DealtBatches(
            order, lengths, train, ranks.rank, ranks.world, padded=not loaded.padding_free, agreed=ranks.share
        )
    return Loader(
        loader.dataset,
        batch_sampler=batches,
        collate_fn=lambda rows: collate(rows) if rows else learner.nothing(loaded),
        pin_memory=loader.pin_memory,
    )


def _add_up(model: Any, loss: Any, ranks: Ranks) -> Any:
    """Set the gradients to their sums over all processes; returns the sum of `loss` (), in one go with them.

    A parameter that no process has a gradient for stays without one.
    """
    import torch

    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    has_gradient = ranks.any(*(parameter.grad is not None for parameter in trainable))
    parameters = [parameter for parameter, is_used in zip(trainable, has_gradient, strict=True) if is_used]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in parameters]
    flat = torch.cat([*(gradient.reshape(-1) for gradient in gradients), loss.reshape(1)])
    ranks.add_up(flat)
    sums = flat[:-1].split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [part.view_as(whole) for part, whole in zip(sums, gradients, strict=True)])
    return flat[-1]
