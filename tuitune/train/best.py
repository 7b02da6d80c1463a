"""The best of the checkpoints that were measured: gone back to where a run ends early, else told of at its end."""

from typing import Any

from tuitune.backends.loaded import LoadedModel
from tuitune.language import N_, Sentence, _
from tuitune.runs.events import Notice
from tuitune.runs.folder import Run
from tuitune.text import one_line
from tuitune.train import checkpoints
from tuitune.train.carry import on_every_host
from tuitune.train.control import Emit
from tuitune.train.evaluate import Evaluator
from tuitune.train.ranks import Ranks


def go_back_to_the_best(evaluator: Evaluator, loaded: LoadedModel, run: Run, emit: Emit, ranks: Ranks) -> int | None:
    """Give the model the adapter of the best checkpoint, and tell why the run ended; the step it is of.

    None where that checkpoint is not there or not whole: the model stays as it is.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    best = evaluator.best
    assert best is not None, "a run ends early for what was measured"
    checkpoint = run.checkpoints / f"checkpoint-{best.step}"
    comparison = _best_and_last(
        evaluator,
        N_("Ended early: the held-out reward was highest at step {step} ({best:.4f}) and is {last:.4f} now"),
        N_("Ended early: the held-out loss was lowest at step {step} ({best:.4f}) and is {last:.4f} now"),
    )
    whole = on_every_host(checkpoint if checkpoints.damage(checkpoint) is None else None, run, ranks)
    text = (
        _("{told}; the adapter is the last one, as that of step {step} is not there.", told=comparison, step=best.step)
        if whole is None
        else _("{told}; the adapter is that of step {step}.", told=comparison, step=best.step)
    )
    if whole is not None:
        set_peft_model_state_dict(loaded.model, load_file(whole / "adapter_model.safetensors"))
    emit(Notice(text=text))
    return None if whole is None else best.step


def tell_of_a_better_one(evaluator: Evaluator, run: Run, emit: Emit) -> None:
    """Where an earlier checkpoint has a lower held-out loss than the adapter that was just measured, say so."""
    best, last = evaluator.best, evaluator.measured[-1] if evaluator.measured else None
    if best is None or last is None or best.loss >= last.loss:
        return
    if (run.checkpoints / f"checkpoint-{best.step}").is_dir():
        comparison = _best_and_last(
            evaluator,
            N_("The held-out reward was highest at step {step} ({best:.4f}, now {last:.4f})"),
            N_("The held-out loss was lowest at step {step} ({best:.4f}, now {last:.4f})"),
        )
        text = _(
            "{told}: `tuitune chat {run} --checkpoint best` talks to that adapter, and `tuitune export` takes the same "
            "option.",
            told=comparison,
            run=one_line(run.name),
        )
        emit(Notice(text=text))


def _best_and_last(evaluator: Evaluator, of_reward: str, of_loss: str) -> Sentence:
    """The best measurement beside the last one; a reward is measured as a loss, with its sign turned."""
    best: Any = evaluator.best
    has_reward = "reward" in best.metrics
    sign, message = (-1, of_reward) if has_reward else (1, of_loss)
    return _(message, step=best.step, best=sign * best.loss, last=sign * evaluator.measured[-1].loss)
