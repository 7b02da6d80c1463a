"""What a run costs: the time that sessions held it, at the price of an hour."""

import re
import time
from dataclasses import dataclass

from tuitune.errors import UnusableInput
from tuitune.language import _, ascii_only
from tuitune.runs.history import Attempt, History
from tuitune.text import one_line

_PRICE = re.compile(
    r"\s*(?P<before>[^\d\s.,-]{1,8})?\s*(?P<amount>\d{1,6}(?:\.\d{1,4}|,\d{1,2})?)\s*(?P<after>[^\d\s.,-]{1,8})?\s*"
)
_DOLLAR = "$"
_IN_ASCII = {"€": "EUR", "£": "GBP", "₹": "INR", "₩": "KRW"}
"""What stands for a currency's sign where everything is shown in ASCII; ¥ is the sign of two."""


@dataclass(frozen=True, slots=True)
class Price:
    """What the machine costs an hour; `currency` is a label of the user's, as `$`, `€` or `credits`."""

    per_hour: float
    currency: str = _DOLLAR

    @classmethod
    def parse(cls, text: str) -> "Price | None":
        """The price in `2.5`, `$2.50`, `€2,50` or `3 credits`; None in empty text and for 0. Raises UnusableInput."""
        if not text.strip():
            return None
        parts = _PRICE.fullmatch(text)
        if parts is None or (parts["before"] and parts["after"]):
            raise UnusableInput(
                "The price {text!r} is not an amount: give it as 2.5, $2.50 or 2.50 EUR.",
                text=one_line(text, max_length=40),
            )
        amount = float(parts["amount"].replace(",", "."))
        label = one_line(parts["before"] or parts["after"] or _DOLLAR, max_length=8)
        return cls(amount, label) if amount else None

    def __str__(self) -> str:
        return _("{price} an hour", price=money(self.per_hour, self.currency))


@dataclass(frozen=True, slots=True)
class Cost:
    """`so_far`, and `to_end`: what the run will have cost at its end, None where it has ended or is not foreseen."""

    so_far: float
    to_end: float | None
    currency: str

    def __str__(self) -> str:
        text = money(self.so_far, self.currency)
        if self.to_end is None:
            return text
        return _("{cost} of about {whole}", cost=text, whole=money(self.to_end, self.currency))


def cost(history: History, now: float | None = None) -> Cost | None:
    """What a run has cost and will cost; None where no attempt has a price. `now`: epoch seconds while it is live.

    An attempt is paid for from its beginning to its end, or to the last that was heard of it; what lies between two
    attempts is not. One without a price of its own has that of the attempt before, or else of the first that has one.
    Attempts that were priced in another currency than the last are left out.
    """
    priced = _priced(history.attempts)
    if not priced:
        return None
    last_price = priced[-1][1]
    so_far = sum(
        seconds_held(attempt, now if attempt is history.attempts[-1] else None) / 3600 * price.per_hour
        for attempt, price in priced
        if price.currency == last_price.currency
    )
    seconds_left = history.seconds_left
    to_end = (
        None
        if history.ended is not None or seconds_left is None
        else so_far + seconds_left / 3600 * last_price.per_hour
    )
    return Cost(so_far, to_end, last_price.currency)


def live_cost(history: History) -> Cost | None:
    """What a run that a session is training has cost until this moment."""
    return cost(history, time.time())


def seconds_held(attempt: Attempt, now: float | None = None) -> float:
    """For how long a session held the run in this attempt; until `now` where it goes on."""
    ends_at = attempt.last_at if attempt.ended or now is None else max(now, attempt.last_at)
    return max(0.0, ends_at - attempt.started_at)


def _priced(attempts: list[Attempt]) -> list[tuple[Attempt, Price]]:
    price = next((_price_of(attempt) for attempt in attempts if _price_of(attempt)), None)
    priced = []
    for attempt in attempts:
        price = _price_of(attempt) or price
        if price is not None:
            priced.append((attempt, price))
    return priced


def _price_of(attempt: Attempt) -> Price | None:
    event = attempt.price
    return Price(event.per_hour, event.currency) if event is not None and event.per_hour > 0 else None


def money(amount: float, currency: str) -> str:
    """An amount with its label: `$1.20`, `1.20 EUR`; small amounts with two digits that count."""
    if amount < 0.001:
        digits = "0" if amount <= 0 else "<0.001"
    else:
        digits = f"{amount:,.2f}" if amount >= 0.1 else f"{amount:.3f}"
    label = one_line(currency, max_length=8)
    if ascii_only():
        label = _IN_ASCII.get(label, label)
    return f"{digits} {label}" if label.isalnum() else f"{label}{digits}"
