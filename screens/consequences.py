"""What a recipe would mean on this machine, in a few lines: size, steps, time, memory, warnings."""

from typing import Any

from textual.content import Content

from screens.actions import ACTIONS, key_name
from screens.widgets.bars import bar
from screens.widgets.fit import fit
from tuitune.export.times import together
from tuitune.language import N_, _
from tuitune.plan.advice import offer_of_16bit, passes_over_data, training_seconds, warnings
from tuitune.plan.scaling import WORTH_ITS_CARDS
from tuitune.recipe import Recipe
from tuitune.runs.cost import Price, money
from tuitune.runs.speed import Speed
from tuitune.session.preparing_requests import Access
from tuitune.text import one_line
from tuitune.units import about, count, gib, size

_MUTED = "$foreground 60%"
_STYLES = {N_("fits"): "$text-success", N_("tight"): "$text-warning", N_("does not fit"): "$text-error"}
_GLYPHS = {"fits": "✔", "tight": "~", "does not fit": "✘"}
_PARTS = (
    N_("weights"),
    N_("adapter"),
    N_("optimizer"),
    N_("activations"),
    N_("logits"),
    N_("rollouts"),
    N_("overhead"),
)


def consequences(
    recipe: Recipe,
    estimate: dict[str, Any] | None,
    speed: Speed | None = None,
    *,
    price: Price | None = None,
    counting: bool = True,
    access: Access | None = None,
) -> Content:
    """`estimate` is the session's answer, None while it is `counting` or could not; `speed` an earlier run's.

    `price` is what the machine costs, None where nobody has said so; `access` what the Hub says of the repository,
    None until it has.
    """
    train, lora = recipe.train, recipe.lora
    texts = estimate["warnings"] if estimate else warnings(recipe)
    lines = [Content.styled(f"! {text}", "$text-warning") for text in texts]
    if estimate is None and counting:
        lines.append(Content.styled(_("Counting parameters, steps and memory…"), _MUTED))
    if estimate is not None:
        lines += _counted(recipe, estimate, speed, price)
    lines.append(
        Content(
            _(
                "r {r} · lora_alpha {alpha:g} · learning_rate {rate:g} · batch {batch} × {accumulation} · "
                "max_length {max_length:,}",
                r=lora.r,
                alpha=lora.lora_alpha,
                rate=train.learning_rate,
                batch=train.per_device_train_batch_size,
                accumulation=train.gradient_accumulation_steps,
                max_length=recipe.data.max_length,
            )
        )
    )
    if estimate is not None:
        lines += _exports(estimate.get("exports", []), access)
        parts = (
            f"{_(part)} {size(estimate['memory'][f'{part}_bytes'])}"
            for part in _PARTS
            if part != "rollouts" or estimate["memory"]["rollouts_bytes"]
        )
        lines.append(Content.styled(_("Memory: {parts}", parts=" · ".join(parts)), _MUTED))
    return Content("\n").join(lines)


def _exports(exports: list[dict[str, Any]], access: Access | None) -> list[Content]:
    """What the recipe wants to make of the result: why a kind cannot be made, and how long the others take."""
    refusal = access["refusal"] if access else None
    missing = {
        kind["kind"]: kind["missing"] or (refusal if kind["kind"].startswith("hub:") else None) for kind in exports
    }
    lines = [
        Content.assemble(
            (fit(_("Export"), 8), _MUTED), (f"✘ {one_line(name, max_length=40)}", _STYLES["does not fit"]),
            f": {one_line(reason, max_length=300)}",
        )
        for name, reason in missing.items() if reason
    ]  # fmt: skip
    possible = [kind for kind in exports if not missing[kind["kind"]]]
    asked = [kind for kind in possible if access is None and kind["kind"].startswith("hub:")]
    if asked:
        names = one_line(", ".join(kind["kind"] for kind in asked), max_length=200)
        lines.append(_line(_("Export"), _("{kinds}: asking the Hub about the repository…", kinds=names)))
    if ready := [kind for kind in possible if kind not in asked]:
        names = one_line(", ".join(kind["kind"] for kind in ready), max_length=200)
        lines.append(_line(_("Export"), f"✔ {names}: {together(ready)}"))
    return lines


def _counted(recipe: Recipe, estimate: dict[str, Any], speed: Speed | None, price: Price | None) -> list[Content]:
    steps, rows = estimate["steps"], estimate["rows"]
    numbers: dict[str, Any] = {
        "trained": count(estimate["trainable_parameters"]),
        "frozen": count(estimate["total_parameters"]),
        "share": estimate["trainable_share"],
    }
    trained = (
        _("{trained} parameters beside {frozen} frozen ones ({share:.2%})", **numbers)
        if steps is None
        else _(
            "{trained} parameters beside {frozen} frozen ones ({share:.2%}) in {steps:,} steps", **numbers, steps=steps
        )
    )
    lines = [_line(_("Trains"), trained)]
    adapted = (
        f"{one_line(name, max_length=40)} {count(parameters)}" for name, parameters in estimate["targets"].items()
    )
    lines.append(_line(_("On"), " · ".join(adapted)))
    lines += [_line("", text) for text in estimate["left_out"]]
    if rows is None:
        lines.append(_line(_("Data"), _("large: counted when the run starts")))
    else:
        data: dict[str, Any] = {
            "rows": rows,
            "passes": passes_over_data(recipe, rows),
            "tokens": count(estimate["tokens"]),
            "trained": count(estimate["trained_tokens"]),
        }
        counted = (
            _("{rows:,} rows, each seen {passes:.1f} times · {tokens} tokens, {trained} trained", **data)
            if estimate["trained_tokens"]
            else _("{rows:,} prompts, each answered {passes:.1f} times · {tokens} tokens", **data)
        )
        lines.append(_line(_("Data"), counted))
    lines.append(_line(_("Time"), _time(recipe, estimate, speed, price)))
    lines += _cards(recipe, estimate, speed, price)
    memory, available, verdict = estimate["memory"], estimate["available_bytes"], estimate["verdict"]
    needed = memory["total_bytes"]
    device = one_line(_(estimate["device"]), max_length=40)
    lines.append(
        Content.assemble(
            (fit(_("Memory"), 8), _MUTED),
            (f"{bar(needed / max(1, available), 10)} {_GLYPHS[verdict]} {_(verdict)}", _STYLES[verdict]),
            _(
                ": {needed} of {available} free on {device}",
                needed=gib(needed),
                available=gib(available),
                device=device,
            ),
        )
    )
    if in_16bit := estimate.get("bytes_in_16bit"):
        lines.append(Content.styled(f"{'':<8}{offer_of_16bit(in_16bit)}", _MUTED))
    return lines


def _time(recipe: Recipe, estimate: dict[str, Any], speed: Speed | None, price: Price | None) -> str:
    """Time and cost of the training: never a guess, from what was measured on this device or not at all."""
    cost = str(price) if price else _("{key}: its cost", key=key_name(ACTIONS["endings"]))
    if speed is None:
        return _("measured from the first steps ({cost})", cost=cost)
    way = _chosen_way(recipe, estimate)
    speedup = way["speedup"] if way else 1.0
    tokens, run = speed.tokens_per_second, one_line(speed.run, max_length=40)
    pace = (
        _("at the {speed:,.0f} tokens/s of {run}", speed=tokens, run=run)
        if speedup == 1
        else _(
            "at the {speed:,.0f} tokens/s of {run} on one card, × {factor:.2f}", speed=tokens, run=run, factor=speedup
        )
    )
    if estimate["rows"] is None:
        return _("known once the data is counted, {pace} ({cost})", pace=pace, cost=cost)
    seconds = training_seconds(recipe, estimate["rows"], estimate["tokens"], tokens * speedup)
    if price:
        cost = _("about {cost}", cost=money(seconds / 3600 * price.per_hour, price.currency))
    return _("{time} ({cost}) {pace}", time=about(seconds), cost=cost, pace=pace)


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
            cost = f"{_(', ')}{money(seconds / 3600 * price.per_hour, price.currency)}" if price else ""
            text = f"{about(seconds).removeprefix('about ')}{cost}"
        texts += [(" · " if texts else "", ""), (f"{way['gpus']}: {text}", "bold" if way == chosen else "")]
    lines = [Content.assemble((fit(_("Cards"), 8), _MUTED), *texts, (f" {_('(computed; train.gpus)')}", _MUTED))]
    few = next((way["gpus"] for way in ways if way["speedup"] < WORTH_ITS_CARDS * way["gpus"]), None)
    if few is not None:
        small = _(
            "With {gpus} cards or more so small a step gains little: their time goes into launching it.", gpus=few
        )
        lines.append(Content.styled(f"{'':<8}{small}", _MUTED))
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
    return Content.assemble((fit(name, 8), _MUTED), text)
