"""Tells a webhook and an ntfy topic that a run has ended. Addresses and tokens are in no sentence of this module."""

import http.client
import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from urllib.parse import urlsplit

from tuitune.endings.outcome import Outcome
from tuitune.errors import TuituneError, UnusableInput, explain
from tuitune.language import N_, _
from tuitune.settings import Settings
from tuitune.text import one_line

SECONDS_TO_ANSWER = 10.0
_NTFY = "https://ntfy.sh/"
_TOPIC = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TOKEN = re.compile(r"[!-~]{1,4096}")
_TAGS = {"done": "white_check_mark", "failed": "x"}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows nothing: what is sent, and its token, are for the address that the user gave alone."""

    def redirect_request(self, *arguments: object) -> None:
        return None


def senders(settings: Settings, outcome: Outcome) -> dict[str, Callable[[], None]]:
    """What there is to tell, by its name in a sentence. Each blocks, and raises TuituneError where it did not work."""
    senders_by_name: dict[str, Callable[[], None]] = {}
    if settings.webhook:
        senders_by_name[N_("webhook")] = lambda: send_webhook(settings, outcome)
    if settings.ntfy:
        senders_by_name[N_("ntfy topic")] = lambda: send_ntfy(settings, outcome)
    return senders_by_name


def send_webhook(settings: Settings, outcome: Outcome) -> None:
    """POST the outcome as JSON. Raises TuituneError."""
    require_webhook(settings.webhook)
    body = json.dumps(outcome.as_dict(), ensure_ascii=True).encode()
    _post(settings.webhook, body, {"Content-Type": "application/json"}, settings.webhook_token)


def send_ntfy(settings: Settings, outcome: Outcome) -> None:
    """POST the outcome's sentence as the message; nothing of the run is in a header. Raises TuituneError."""
    headers = {"Content-Type": "text/plain; charset=utf-8", "Title": "tuitune"}
    headers["Tags"] = _TAGS.get(outcome.state, "stop_button")
    _post(ntfy_address(settings.ntfy), str(outcome).encode(), headers, settings.ntfy_token)


def ntfy_address(topic: str) -> str:
    """The address of a topic: one of ntfy.sh by its name, or a whole address. Raises UnusableInput."""
    if _TOPIC.fullmatch(topic):
        return _NTFY + topic
    remedy = _("give a topic's name (letters, digits, - and _) or https://SERVER/TOPIC")
    _require_address(topic, _("ntfy topic"), remedy)
    return topic


def require_webhook(address: str) -> None:
    """Raises UnusableInput."""
    _require_address(address, _("webhook"), _("give one that begins with https:// or http://"))


def _require_address(address: str, receiver: str, remedy: str) -> None:
    """Refuse what is no web address, or holds a password, which belongs into the token."""
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable or not address.isascii() or any(character <= " " or character == "\x7f" for character in address):
        raise UnusableInput("The {receiver}'s address cannot be used: {remedy}.", receiver=receiver, remedy=remedy)
    if "@" in parts.netloc:
        raise UnusableInput(
            "The {receiver}'s address holds a user or password: give it as the token instead.", receiver=receiver
        )


def _post(address: str, body: bytes, headers: dict[str, str], token: str) -> None:
    """POST once, following no redirect. Raises TuituneError, with a reason that begins no sentence."""
    request = urllib.request.Request(address, body, {"User-Agent": "tuitune", **headers}, method="POST")
    if token:
        if not _TOKEN.fullmatch(token):
            raise TuituneError("its token has characters that no header can hold")
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    host = one_line(urlsplit(address).hostname, max_length=80)
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=SECONDS_TO_ANSWER):
            pass
    except urllib.error.HTTPError as error:
        error.close()
        if 300 <= error.code < 400:
            raise TuituneError(
                "{host} answered with status {status}: redirects are not followed, so give the address that it leads "
                "to",
                host=host,
                status=error.code,
            ) from None
        raise TuituneError("{host} answered with status {status}", host=host, status=error.code) from None
    except urllib.error.URLError as error:
        reason = explain(error.reason) if isinstance(error.reason, OSError) else _("it cannot be reached")
        raise TuituneError("{host}: {reason}", host=host, reason=one_line(reason, max_length=120)) from None
    except (OSError, http.client.HTTPException, ValueError) as error:  # a text of theirs may quote the address
        raise TuituneError(
            "{host} did not answer as a web server does ({error})", host=host, error=type(error).__name__
        ) from None
