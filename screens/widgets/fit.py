"""Text in columns of a width in terminal cells, of which wide characters (CJK, emoji) take two."""

from rich.cells import cell_len, set_cell_size


def fit(text: str, width: int, *, right: bool = False, keep_end: bool = False) -> str:
    """`text` in exactly `width` cells: filled with spaces, or cut at a whole character with `…` where it was cut.

    `right` aligns it at the right edge; `keep_end` cuts its beginning, as what tells paths apart is at their end.
    """
    missing = width - cell_len(text)
    if missing >= 0:
        return " " * missing + text if right else text + " " * missing
    if width < 1:
        return ""
    if not keep_end:
        return set_cell_size(_beginning(text, width - 1) + "…", width)
    kept = ""
    for character in reversed(text):
        if cell_len(character + kept) > width - 1:
            break
        kept = character + kept
    return set_cell_size("…" + kept, width)


def cut(text: str, width: int) -> str:
    """`text` in at most `width` cells, with `…` where it was cut."""
    return fit(text, min(width, cell_len(text)))


def _beginning(text: str, width: int) -> str:
    """The longest beginning of whole characters that has at most `width` cells."""
    cells = 0
    for place, character in enumerate(text):
        cells += cell_len(character)
        if cells > width:
            return text[:place]
    return text
