"""The trainer's steps on a GPU, queued without waiting for it until the loss is read at their end.

While the GPU computes a pass, gradients' norm, clipping and optimizer are queued behind it. Each wait in between would
leave it idle for as long as Python takes to queue the next part: of a small step more than half.
"""

from typing import Any

from tuitune.train.graphs import PassGraphs


def queue_steps(trainer: Any, graphs: PassGraphs | None) -> None:
    """Have `trainer`, whose rows are laid end to end on one GPU, wait once a step; its passes replayed from `graphs`.

    Batches stay on the CPU until their pass, so that their tokens are counted there.
    """
    import torch

    loader_of, step_of = trainer.get_train_dataloader, trainer.training_step
    device, pad = trainer.args.device, trainer.processing_class.pad_token_id

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
        if graphs is None or num_items_in_batch is None:
            return step_of(model, inputs, num_items_in_batch)
        if not model.training:
            model.train()
        return graphs.run(inputs, num_items_in_batch)

    trainer.get_train_dataloader = get_train_dataloader
    trainer._prepare_inputs = prepare_inputs
    trainer._track_num_input_tokens = track_num_input_tokens
    trainer.training_step = training_step
    trainer.graphs = graphs
