"""Ask an export the same as the adapter that it was made of, which is asked once for all kinds of one call."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuitune.chat import gguf_engine
from tuitune.errors import TuituneError
from tuitune.export.kinds import Cancelled, Kind
from tuitune.export.ollama import GGUF_NAME
from tuitune.export.times import timed
from tuitune.language import _
from tuitune.runs.folder import Run

if TYPE_CHECKING:
    from tuitune.export.answers import Answers, Reference
    from tuitune.export.parity import Parity


class Proof:
    """What the exports of one call answer, beside what their adapter does."""

    def __init__(
        self,
        run: Run,
        tokenizer: Callable[[], Any],
        whole_bytes: Callable[[], int],
        cancelled: Callable[[], bool],
    ) -> None:
        """`tokenizer` opens the run's; `whole_bytes` is about what the whole model takes on disk."""
        self._run = run
        self._tokenizer = tokenizer
        self._whole_bytes = whole_bytes
        self._cancelled = cancelled
        self._answers: dict[str, Answers] = {}

    @cached_property
    def _reference(self) -> "Reference | TuituneError":
        """What the adapter itself says, or why it cannot be asked; it is asked once for all kinds."""
        from tuitune.export.answers import questions_of, reference
        from tuitune.export.merged import sixteen_bit

        try:
            recipe, _notices = sixteen_bit(self._run.resolved())
            tokenizer = self._tokenizer()
            questions = questions_of(self._run, tokenizer, self._cancelled)
            with timed("ask the adapter", self._whole_bytes):
                return reference(self._run, recipe, tokenizer, questions, self._cancelled)
        except Cancelled:
            raise
        except TuituneError as error:
            return error

    def of(
        self, kind: Kind, path: Path, base_gguf: Callable[[Kind], Path], *, template_told: bool
    ) -> tuple["Parity | None", tuple[str, ...]]:
        """How what was made compares with the adapter, or why it was not asked anything. Raises TuituneError.

        `base_gguf` makes the base's GGUF, to try the adapter's on; `template_told`: the user is told that the chat
        template begins replies in another way.
        """
        from tuitune.export.answers import llama_cpp_answers, transformers_answers
        from tuitune.export.parity import judged

        expected = self._reference
        if isinstance(expected, TuituneError):
            return None, (
                _("It was not asked anything, because the adapter could not be: {reason}", reason=expected.sentence),
            )
        recipe = self._run.resolved()
        if kind.form in ("merged_16bit", "merged_4bit"):
            try:
                with timed(f"ask {kind.form}", self._whole_bytes):
                    answers = transformers_answers(path, recipe, expected, self._cancelled)
            except Cancelled:
                raise
            except TuituneError as error:
                return None, (_("It was not asked anything: {reason}", reason=error.sentence),)
        elif not gguf_engine.available():
            return None, (_(gguf_engine.MISSING),)
        elif kind.form == "adapter_gguf":
            answers = llama_cpp_answers(base_gguf(kind), expected, self._cancelled, lora=path)
        else:
            assert kind.gguf is not None
            if kind.gguf not in self._answers:  # an Ollama folder has the same file
                file = path / GGUF_NAME if path.is_dir() else path
                with timed(f"ask {kind.gguf}", self._whole_bytes):
                    self._answers[kind.gguf] = llama_cpp_answers(file, expected, self._cancelled)
            answers = self._answers[kind.gguf]
        return judged(kind.name, expected, answers, template_told=template_told), ()
