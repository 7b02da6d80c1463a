"""A part of a document, and where it stands."""

from dataclasses import dataclass

from tuitune.language import Sentence, _


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of a document that answers a question by itself, or nearly.

    Its place is a range of lines from 1, or of a PDF a `page`. `before` and `after` are what stands around it.
    """

    file: str
    text: str
    heading: str = ""
    """The headings, or names of class and function, that it stands under: `Exports › Fetch it`."""
    start_line: int = 0
    end_line: int = 0
    page: int | None = None
    before: str = ""
    after: str = ""
    score: float = 0.0

    @property
    def place(self) -> Sentence:
        if self.page is not None:
            return _("page {page}", page=self.page)
        if self.end_line <= self.start_line:
            return _("line {line}", line=self.start_line)
        return _("lines {first}–{last}", first=self.start_line, last=self.end_line)

    @property
    def sent(self) -> str:
        """What a model reads of it: where it is from, then its text."""
        heading = f", {self.heading}" if self.heading else ""
        return f"{self.file}, {self.place.english}{heading}\n{self.text}"
