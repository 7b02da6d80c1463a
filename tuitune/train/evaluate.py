"""What the model can do before and after: the held-out loss, and replies to a few prompts."""

import gc
from typing import Any

from tuitune.backends.loaded import LoadedModel
from tuitune.chat.reply import Sampling, reply
from tuitune.data.prepare import Prepared
from tuitune.errors import TuituneError
from tuitune.recipe import Recipe
from tuitune.runs.events import Evaluation, Notice, Reply
from tuitune.text import one_line
from tuitune.train.control import Control, Emit, Stopped


def measure_loss(trainer: Any, emit: Emit, attempt: int, step: int) -> None:
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


def prompts_of(recipe: Recipe, prepared: Prepared) -> list[Any]:
    """The prompts whose replies are shown: the recipe's, else a few of the data's own."""
    if recipe.samples.prompts:
        return [[{"role": "user", "content": prompt}] for prompt in recipe.samples.prompts]
    return list(prepared.prompts(3))


def sample_replies(
    loaded: LoadedModel, prompts: list[Any], recipe: Recipe, emit: Emit, control: Control, step: int
) -> None:
    """Reply to the prompts as a chat would; one that the chat template refuses is told of once, before training."""
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
