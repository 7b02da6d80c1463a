"""Which texts of a screen are cut off by their places, measured in cells.

A text of ours is seen whole, wrapped at most, or can be scrolled to by keys. What comes from outside (names, paths,
rows of data) may be cut, and ends in an ellipsis then.
"""

import re
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import combinations

from textual.content import Content
from textual.geometry import Region
from textual.screen import Screen
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import DataTable, Input, OptionList, TextArea, Tooltip
from textual.widgets._footer import FooterKey
from textual.widgets._toast import Toast

import messages
from screens.widgets.metric_plot import MetricPlot
from screens.widgets.overlay_plot import OverlayPlot
from tuitune.language import FOLDER, language

_ELLIPSIS = "…"
_TOLD_BY = 6
"""Characters beside an ellipsis that tell whose text it has cut."""


def cut_texts(screen: Screen[object], outside: Iterable[str]) -> list[str]:
    """A sentence for each text that is cut; `outside` are the texts on the screen that are not ours."""
    places = screen._compositor.full_map
    shown: list[tuple[Widget, Region]] = []
    sentences = []
    for widget, place in places.items():
        if isinstance(widget, Tooltip) or not widget.visible:
            continue
        sentences += cut_in(widget, outside)
        texts = [wanted for wanted, _drawn in _texts(widget) if wanted.strip()]
        if texts:
            visible = place.region.intersection(place.clip)
            if _is_outside(widget, place.region, place.clip):
                sentences.append(f"{_name(widget)}: {visible.size} of {place.region.size} can be seen of {texts}")
            if visible and not isinstance(widget, Toast) and not widget.is_container:
                shown.append((widget, visible))
    for (one, its), (other, others) in combinations(shown, 2):
        if its.overlaps(others) and one not in other.ancestors and other not in one.ancestors:
            sentences.append(f"{_name(one)} and {_name(other)} lie over each other")
    return sentences


def cut_in(widget: Widget, outside: Iterable[str]) -> list[str]:
    """The same for the texts that one widget draws, in the room that it has."""
    foreign = [_squeezed(text) for text in outside]
    return [
        f"{_name(widget)}: {problem}"
        for wanted, drawn in _texts(widget)
        for problem in _problems(wanted, drawn, foreign)
    ]


def _texts(widget: Widget) -> Iterator[tuple[str, str]]:
    """Each text of a widget, whole and as it is drawn."""
    strips = widget.render_lines(Region(0, 0, *widget.outer_size))
    if not strips:
        strips = [Strip([])]
    for title, (edge, _color), line in (
        (widget._border_title, widget.styles.border_top, strips[0]),
        (widget._border_subtitle, widget.styles.border_bottom, strips[-1]),
    ):
        if title is not None and edge:
            yield title.plain, line.text
    top, right, bottom, left = widget.gutter
    height, width = len(strips) - top - bottom, widget.outer_size.width - left - right
    inner = [strip.crop(left, left + max(0, width)) for strip in strips[top : top + max(0, height)]]
    drawn = "\n".join(strip.text for strip in inner)
    match widget:
        case OptionList():
            for option in widget.options:
                style = widget.get_visual_style("option-list--option")
                lines = widget._get_option_render(option, style)
                yield str(widget._get_visual(option)), "\n".join(line.text for line in lines)
        case DataTable():
            for column in widget.ordered_columns:
                yield str(column.label), str(column.label)[: column.get_render_width(widget)]
        case Input():
            yield ("" if widget.value else str(widget.placeholder)), drawn
        case TextArea():
            yield ("" if widget.text else str(widget.placeholder)), drawn
        case MetricPlot():
            yield "".join(segment.text for segment in widget._title()), drawn
        case OverlayPlot():
            yield widget._title, drawn
        case _ if isinstance(visual := widget._render(), Content):
            yield visual.plain, drawn


def _problems(wanted: str, drawn: str, foreign: list[str]) -> Iterator[str]:
    seen = _squeezed(drawn)
    for line in wanted.splitlines():
        rest = _rest(_squeezed(line), seen)
        if rest and not any(rest in text for text in foreign):
            yield f"“{rest}” is not seen of “{line}”, but “{drawn}”"
    for line in drawn.splitlines():
        yield from _ellipses(line, foreign)


def _rest(wanted: str, seen: str) -> str:
    """What is not seen of a text: all after its longest beginning that is."""
    low, high = 0, len(wanted)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if wanted[:middle] in seen else (low, middle - 1)
    return wanted[low:]


def _ellipses(line: str, foreign: list[str]) -> Iterator[str]:
    """What is cut before or after an ellipsis that no message of ours has."""
    for found in re.finditer(_ELLIPSIS, line):
        before = _squeezed(re.split(r"\s{2,}", line[: found.start()])[-1])[-_TOLD_BY:]
        after = _squeezed(line[found.end() :])[:_TOLD_BY]
        if before and before + _ELLIPSIS in _own_texts(language()):
            continue
        if not any((before or after) in text for text in foreign):
            yield f"“{before}…{after}” is cut in “{line.strip()}”"


@cache
def _own_texts(name: str) -> str:
    """Every message of our catalogues in a language, squeezed."""
    folder = FOLDER / name if name != "en" else next(folder for folder in FOLDER.iterdir() if folder.is_dir())
    read = [messages.read(file) for file in sorted(folder.glob("*.po"))]
    texts = [text for texts in read for text in (texts if name == "en" else texts.values())]
    return "\n".join(_squeezed("\n".join(text) if isinstance(text, tuple) else text) for text in texts)


def _is_outside(widget: Widget, region: Region, clip: Region) -> bool:
    """Whether a part of the widget is outside of what is shown of its containers, and no key brings it in."""
    seen = region.intersection(clip)
    return (seen.width < region.width and not _is_scrolled(widget, "overflow_x")) or (
        seen.height < region.height and not _is_scrolled(widget, "overflow_y")
    )


def _is_scrolled(widget: Widget, direction: str) -> bool:
    """Whether keys can scroll a container of the widget: one that has the focus, or holds what has it."""
    return any(
        getattr(container.styles, direction) in ("auto", "scroll")
        and (container.focusable or any(child.focusable for child in container.walk_children(Widget)))
        for container in widget.ancestors
        if isinstance(container, Widget) and not isinstance(container, Screen)
    )


@cache  # the texts from outside are long, and looked for in every widget
def _squeezed(text: str) -> str:
    """The text without its spaces and line breaks, which wrapping changes."""
    return "".join(text.split())


def _name(widget: Widget) -> str:
    own = f"#{widget.id}" if widget.id else "".join(f".{name}" for name in sorted(widget.classes))
    key = f" {widget.key}" if isinstance(widget, FooterKey) else ""
    return f"{type(widget).__name__}{own}{key}"
