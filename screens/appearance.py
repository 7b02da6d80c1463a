"""How the app looks: themes that everybody can tell apart, plain ASCII, and less motion."""

from functools import lru_cache
from unicodedata import normalize

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.filter import LineFilter
from textual.theme import Theme

from tuitune.text import without_controls

# Okabe & Ito (2008), "Color Universal Design": told apart with any kind of colour vision.
SAFE_DARK = Theme(
    name="colour-blind-safe",
    primary="#56B4E9",
    secondary="#0072B2",
    accent="#F0E442",
    success="#009E73",
    warning="#E69F00",
    error="#D55E00",
    dark=True,
)
SAFE_LIGHT = Theme(
    name="colour-blind-safe-light",
    primary="#0072B2",
    secondary="#56B4E9",
    accent="#CC79A7",
    success="#009E73",
    warning="#B87900",
    error="#D55E00",
    dark=False,
)

_STANDS_OUT = 0.25
"""Of the brightness between black and white: a cursor, a chosen line and the current step, not a panel or a shade."""

_ASCII = {
    **dict.fromkeys("─━═╌╍┄┅┈┉▔╴╶╸╺╼╾–—−‐‑", "-"),
    **dict.fromkeys("│┃║╎╏┆┇┊┋▏▎▍▌▕▐", "|"),
    **dict.fromkeys("▁▂", "_"),
    **dict.fromkeys("▃▄", "="),
    **dict.fromkeys("▅▆▇▀█▉▊▋▓▒■▙▛▜▟", "#"),
    **dict.fromkeys("▖▗▘▝", "."),
    **dict.fromkeys("▸▶→›▹≥", ">"),
    **dict.fromkeys("◂◀←‹≤", "<"),
    **dict.fromkeys("▼▾↓", "v"),
    **dict.fromkeys("▲▴↑", "^"),
    "✔": "+",
    "✘": "x",
    "‖": "=",
    "✖": "x",
    "░": ".",
    "·": ".",
    **dict.fromkeys("•▪‣⭑◦●", "*"),
    **dict.fromkeys("“”„«»", '"'),
    **dict.fromkeys("‘’‚", "'"),
    "€": "E",
    **dict.fromkeys("📁📂🔎", "> "),
    "📄": "- ",
    "◆": "o",
    "◌": "o",
    "…": "~",
    "°": "o",
    "×": "x",
    "©": "c",
    "⏎": "<",
    "✂": "%",
    "\u2800": " ",
}


def as_ascii(text: str) -> str:
    """The text with every character that is not ASCII replaced by as many columns of ASCII."""
    return (
        text
        if text.isascii()
        else "".join(character if character < "\x80" else _plain(character) for character in text)
    )


def _plain(character: str) -> str:
    if character in _ASCII:
        return _ASCII[character]
    if "\u2500" <= character <= "\u257f":  # corners and crossings of lines
        return "+"
    if "\u2801" <= character <= "\u28ff":  # braille, by how much of the cell it fills
        return ".::*##"[min(5, (ord(character) - 0x2800).bit_count() - 1)]
    columns = cell_len(character)
    letter = normalize("NFKD", character)[0]  # without its accents
    return letter if letter.isascii() and columns == 1 else "?" * columns


class Harmless(LineFilter):
    """Leaves out what a terminal would obey: what is pasted into a field is not changed before it is drawn."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        return [
            segment
            if segment.control or segment.text.isprintable()
            else Segment(without_controls(segment.text), segment.style)
            for segment in segments
        ]


HARMLESS = Harmless()
"""One for the app's life, for lines are kept by their filters."""


class Plain(LineFilter):
    """Draws with no colour at all (no-color.org); what stands out by its background does so by being reversed."""

    def __init__(self, background: Color) -> None:
        """`background`: the app's own."""
        super().__init__()
        self._background = background

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        return [
            segment
            if segment.control or segment.style is None
            else Segment(segment.text, without_colour(segment.style, self._background))
            for segment in segments
        ]


@lru_cache(4096)
def without_colour(style: Style, background: Color) -> Style:
    """The style's attributes alone: bold, underline, and reverse where its background differs much from the app's."""
    plain = style.without_color
    behind = style.color if style.reverse else style.bgcolor
    if behind is None or behind.is_default:
        return plain
    differs = abs(Color.from_rich_color(behind).brightness - background.brightness) > _STANDS_OUT
    return plain + Style(reverse=differs)


class Ascii(LineFilter):
    """Draws everything in ASCII, for terminals and fonts that have nothing else."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        return [segment if segment.control else Segment(as_ascii(segment.text), segment.style) for segment in segments]
