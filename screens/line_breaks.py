"""Where a line may end in Chinese and Japanese: after nearly any character, as there are no spaces between words.

Rich and Textual break lines between words, which they take to be what stands between spaces: a Japanese sentence would
be one word, and be moved whole to the next line.
"""

import re

from rich import _wrap

_WIDE = "\u3001-\u30ff\u3400-\u9fff\uff01-\uffef"
_OPENING = "「『（【〈《"
_CLOSING = "、。，．：；？！）」』】〉》・…ー％ぁぃぅぇぉっゃゅょァィゥェォッャュョ"
"""What begins no line."""

WORD = re.compile(rf"\s*[{_OPENING}]*(?:[{_WIDE}]|[^\s{_WIDE}]+)[{_CLOSING}]*\s*")
"""A word with the space around it, or one wide character with the marks that stay beside it."""


def break_wide_text() -> None:
    """Have lines of this process broken so; texts without wide characters are broken as before."""
    _wrap.re_word = WORD
