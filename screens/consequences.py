"""What a recipe would mean on this machine, in a few lines: size, steps, time, memory, warnings."""

from typing import Any

from textual.content import Content

from screens.actions import ACTIONS, key_name
from screens.widgets.bars import bar
from tuitune.plan.advice import offer_of_16bit, passes_over_data, training_seconds, warnings
from tuitune.plan.scaling import WORTH_ITS_CARDS
from tuitune.recipe import Recipe
from tuitune.runs.cost import Price, money
from tuitune.runs.speed import Speed
from tuitune.text import one_line
from tuitune.units import about, count, gib, size

_MUTED = "$foreground 60%"
_STYLES = {"fits": "$text-success", "tight": "$text-warning", "does not fit": "$text-error"}
_GLYPHS = {"fits": "✔", "tight": "~", "does not fit": "✘"}
_ASK_PRICE = f"{key_name(ACTIONS['endings'])}: its cost"
_PARTS = ("weights", "adapter", "optimizer", "activations", "logits", "rollouts", "overhead")


def consequences(
    recipe: Recipe,
    estimate: dict[str, Any] | None,
    speed: Speed | None = None,
    *,
    price: Price | None = None,
    counting: bool = True,
) -> Content:
    """`estimate` is the session's answer, None while it is `counting` or could not; `speed` an earlier run's.

    `price` is what the machine costs, None where nobody has said so.
    """
    train, lora = recipe.train, recipe.lora
    batch = f"batch {train.per_device_train_batch_size} × {train.gradient_accumulation_steps}"
    texts = estimate["warnings"] if estimate else warnings(recipe)
    lines = [Content.styled(f"! {text}", "$text-warning") for text in texts]
    if estimate is None and counting:
        lines.append(Content.styled("Counting parameters, steps and memory…", _MUTED))
    if estimate is not None:
        lines += _counted(recipe, estimate, speed, price)
    lines.append(
        Content(
            f"r {lora.r} · lora_alpha {lora.lora_alpha:g} · learning_rate {train.learning_rate:g} · "
            f"{batch} · max_length {recipe.data.max_length:,}"
        )
    )
    if estimate is not None:
        parts = (
            f"{part} {size(estimate['memory'][f'{part}_bytes'])}"
            for part in _PARTS
            if part != "rollouts" or estimate["memory"]["rollouts_bytes"]
        )
        lines.append(Content.styled("Memory: " + " · ".join(parts), _MUTED))
    return Content("\n").join(lines)


def _counted(recipe: Recipe, estimate: dict[str, Any], speed: Speed | None, price: Price | None) -> list[Content]:
    steps, rows = estimate["steps"], estimate["rows"]
    trained, frozen = count(estimate["trainable_parameters"]), count(estimate["total_parameters"])
    trained += f" parameters beside {frozen} frozen ones ({estimate['trainable_share']:.2%})"
    lines = [_line("Trains", trained + (f" in {steps:,} steps" if steps is not None else ""))]
    adapted = (
        f"{one_line(name, max_length=40)} {count(parameters)}" for name, parameters in estimate["targets"].items()
    )
    lines.append(_line("On", " · ".join(adapted)))
    lines += [_line("", text) for text in estimate["left_out"]]
    if rows is None:
        lines.append(_line("Data", "large: counted when the run starts"))
    else:
        passes = passes_over_data(recipe, rows)
        tokens = f"{count(estimate['tokens'])} tokens, {count(estimate['trained_tokens'])} trained"
        lines.append(_line("Data", f"{rows:,} rows, each seen {passes:.1f} times · {tokens}"))
    lines.append(_line("Time", _time(recipe, estimate, speed, price)))
    lines += _cards(recipe, estimate, speed, price)
    memory, available, verdict = estimate["memory"], estimate["available_bytes"], estimate["verdict"]
    needed = memory["total_bytes"]
    device = one_line(estimate["device"], max_length=40)
    lines.append(
        Content.assemble(
            (f"{'Memory':<8}", _MUTED),
            (f"{bar(needed / max(1, available), 10)} {_GLYPHS[verdict]} {verdict}", _STYLES[verdict]),
            f": {gib(needed)} of {gib(available)} free on {device}",
        )
    )
    if in_16bit := estimate.get("bytes_in_16bit"):
        lines.append(Content.styled(f"{'':<8}{offer_of_16bit(in_16bit)}", _MUTED))
    return lines


def _time(recipe: Recipe, estimate: dict[str, Any], speed: Speed | None, price: Price | None) -> str:
    """Time and cost of the training: never a guess, from what was measured on this device or not at all."""
    if speed is None:
        return f"measured from the first steps ({price or _ASK_PRICE})"
    pace = f"at the {speed.tokens_per_second:,.0f} tokens/s of {one_line(speed.run, max_length=40)}"
    way = _chosen_way(recipe, estimate)
    speedup = way["speedup"] if way else 1.0
    if speedup != 1:
        pace += f" on one card, × {speedup:.2f}"
    if estimate["rows"] is None:
        return f"known once the data is counted, {pace} ({price or _ASK_PRICE})"
    seconds = training_seconds(recipe, estimate["rows"], estimate["tokens"], speed.tokens_per_second * speedup)
    cost = f"about {money(seconds / 3600 * price.per_hour, price.currency)}" if price else _ASK_PRICE
    return f"{about(seconds)} ({cost}) {pace}"


def _cards(recipe: Recipe, estimate: dict[str, Any], speed: Speed | None, price: Price | None) -> list[Content]:
    """What several of this machine's cards would bring, if it has any: time and cost, or how many times faster."""
    chosen, ways = _chosen_way(recipe, estimate), estimate.get("cards_here") or ()
    if not ways:
        return []
    texts: list[tuple[str, str]] = []
    for way in ways:
        text = f"{way['speedup']:.2f}×"
        if speed is not None:
            pace = speed.tokens_per_second * way["speedup"]
            seconds = training_seconds(recipe, estimate["rows"], estimate["tokens"], pace)
            cost = f", {money(seconds / 3600 * price.per_hour, price.currency)}" if price else ""
            text = f"{about(seconds).removeprefix('about ')}{cost}"
        texts += [(" · " if texts else "", ""), (f"{way['gpus']}: {text}", "bold" if way == chosen else "")]
    lines = [Content.assemble((f"{'Cards':<8}", _MUTED), *texts, (" (computed; train.gpus)", _MUTED))]
    few = next((way["gpus"] for way in ways if way["speedup"] < WORTH_ITS_CARDS * way["gpus"]), None)
    if few is not None:
        small = f"{'':<8}With {few} cards or more so small a step gains little: their time goes into launching it."
        lines.append(Content.styled(small, _MUTED))
    return lines


def _chosen_way(recipe: Recipe, estimate: dict[str, Any]) -> dict[str, Any] | None:
    """The entry of `cards_here` with as many cards as train.gpus means."""
    ways: list[dict[str, Any]] = estimate.get("cards_here") or []
    gpus = recipe.train.gpus
    if not ways or gpus == "auto":
        return ways[0] if ways else None
    count = ways[-1]["gpus"] if gpus == "all" else len(gpus)
    return next((way for way in ways if way["gpus"] == count), None)


def _line(name: str, text: str) -> Content:
    return Content.assemble((f"{name:<8}", _MUTED), text)
