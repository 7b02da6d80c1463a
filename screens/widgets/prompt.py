"""The line one talks to a model in: Enter sends, Ctrl+J breaks the line, the arrows bring back what was said."""

from collections.abc import Sequence

from textual import on
from textual.events import Key
from textual.message import Message
from textual.widgets import TextArea


class Prompt(TextArea):
    """A text area that sends; it grows with its text up to its maximal height."""

    class Sent(Message):
        def __init__(self, prompt: "Prompt", text: str) -> None:
            super().__init__()
            self.prompt = prompt
            self.text = text

        @property
        def control(self) -> "Prompt":
            return self.prompt

    def __init__(self, placeholder: str, id: str) -> None:
        super().__init__(placeholder=placeholder, id=id, compact=True, highlight_cursor_line=False)
        self._said: list[str] = []
        self._has_sent = False
        self._back = 0

    def offer(self, texts: Sequence[str]) -> None:
        """Have the arrow up bring these, the first one first, while nothing was said."""
        if not self._has_sent:
            self._said = list(reversed(texts))

    def take_over(self, other: "Prompt") -> None:
        """Hold what another prompt, in whose place this one stands, has held and brings back."""
        self._said, self._has_sent, self._back = other._said, other._has_sent, other._back
        self.text = other.text
        self.move_cursor(self.document.end)

    def send(self) -> None:
        text = self.text.strip()
        if text:
            self._said.append(text)
            self._has_sent = True
        self._back = 0
        self.post_message(self.Sent(self, text))

    def put_away(self) -> None:
        """Empty the line, and keep what stood there among what the arrows bring back."""
        if text := self.text.strip():
            self._said.append(text)
        self._back = 0
        self.text = ""

    def check_consume_key(self, key: str, character: str | None = None) -> bool:
        return key in ("enter", "ctrl+j") or super().check_consume_key(key, character)

    @on(Key)
    def _send_or_break(self, event: Key) -> None:
        """Enter and Ctrl+J in their place among the keys: a priority binding would overtake letters still queued."""
        if event.key not in ("enter", "ctrl+j"):
            return
        event.prevent_default()
        event.stop()
        if event.key == "enter":
            self.send()
        else:
            self.insert("\n")

    @on(Key)
    def _bring_back(self, event: Key) -> None:
        """Up on the first line and down on the last one go through what was said before."""
        row = self.cursor_location[0]
        step = {"up": 1 if row == 0 else 0, "down": -1 if row == self.document.line_count - 1 else 0}.get(event.key, 0)
        if not step or not 0 <= self._back + step <= len(self._said):
            return
        event.prevent_default()
        event.stop()
        self._back += step
        self.text = self._said[-self._back] if self._back else ""
        self.move_cursor(self.document.end)
