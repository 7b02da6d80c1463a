"""What the Hub says of writing to a repository, asked once and remembered."""

import hashlib

from tuitune.errors import TuituneError
from tuitune.hub.upload import require_writable
from tuitune.language import Sentence


class WriteAccess:
    """Answers of the Hub by repository, visibility and token, for one thread of a process that lives long."""

    def __init__(self) -> None:
        self._answers: dict[tuple[str | None, bool, str], Sentence | None] = {}

    def refusal(self, repository: str | None, *, public: bool, again: bool = False) -> Sentence | None:
        """Why the repository cannot be written to, as `require_writable` says it; None where it can.

        With `again` the Hub is asked once more where it refused or was not reached before.
        """
        from huggingface_hub import get_token

        token = hashlib.sha256((get_token() or "").encode()).hexdigest()
        key = repository, public, token
        if key not in self._answers or (again and self._answers[key] is not None):
            try:
                require_writable(repository)
                self._answers[key] = None
            except TuituneError as error:
                self._answers[key] = error.sentence
        return self._answers[key]
