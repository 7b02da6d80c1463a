"""What a run costs is told by its record: each attempt's time at its price, pauses between them not."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuitune.errors import UnusableInput
from tuitune.language import use_ascii
from tuitune.machine.prices import suggested_price
from tuitune.runs.cost import Price, cost, money, seconds_held
from tuitune.runs.events import Event, Failed, Finished, Notice, Started, Step, to_json
from tuitune.runs.events import Price as PriceEvent
from tuitune.runs.history import History

HOUR = 3600.0


def started(at: float, attempt: int = 1) -> Started:
    return Started(at=at, run="r", attempt=attempt, pid=1)


def priced(at: float, per_hour: float, currency: str = "$") -> PriceEvent:
    return PriceEvent(at=at, per_hour=per_hour, currency=currency)


def step(at: float, number: int, total: int = 10, attempt: int = 1) -> Step:
    return Step(at=at, attempt=attempt, step=number, total_steps=total, epoch=0.1, loss=1.0)


def finished(at: float, status: str = "done") -> Finished:
    return Finished(at=at, status=status, step=1, seconds=1.0, adapter=None)  # type: ignore[arg-type]


def of(*events: Event) -> History:
    return History.of(events)


def test_without_a_price_there_is_no_cost() -> None:
    assert cost(of()) is None
    assert cost(of(started(0), step(HOUR, 1))) is None
    assert cost(of(started(0), priced(1, 0.0), finished(HOUR))) is None
    assert cost(of(priced(1, 2.0))) is None  # a record whose beginning is lost


def test_a_live_run_costs_until_now_and_foresees_its_end() -> None:
    history = of(started(0), priced(0, 2.0), step(HOUR, 1), step(2 * HOUR, 2))
    spent = cost(history, now=3 * HOUR)
    assert spent is not None and spent.so_far == pytest.approx(6.0)
    assert spent.to_end == pytest.approx(6.0 + 8 * 2.0)
    assert str(spent) == "$6.00 of about $22.00"


def test_attempts_count_and_the_pause_between_them_does_not() -> None:
    history = of(
        *(started(0), priced(0, 2.0), finished(HOUR, "stopped")),
        Notice(at=5 * HOUR, text="what follows the end costs nothing"),
        *(started(100 * HOUR, 2), priced(100 * HOUR, 4.0), Failed(at=101 * HOUR, message="no")),
    )
    spent = cost(history, now=200 * HOUR)
    assert spent is not None and spent.so_far == pytest.approx(2.0 + 4.0) and spent.to_end is None
    assert [seconds_held(attempt) for attempt in history.attempts] == [HOUR, HOUR]


def test_a_killed_attempt_costs_until_it_was_last_heard_of() -> None:
    history = of(started(0), priced(0, 1.0), step(HOUR, 1), started(9 * HOUR, 2), step(10 * HOUR, 2, attempt=2))
    spent = cost(history)
    assert spent is not None and spent.so_far == pytest.approx(2.0)  # the second attempt at the price of the first


def test_a_price_named_late_holds_from_the_first_attempt_on_and_a_correction_for_the_whole_attempt() -> None:
    late = cost(of(started(0), finished(HOUR), started(2 * HOUR, 2), priced(3 * HOUR, 3.0), finished(3 * HOUR)))
    assert late is not None and late.so_far == pytest.approx(6.0)
    corrected = cost(of(started(0), priced(1, 30.0), priced(2, 3.0), finished(HOUR)))
    assert corrected is not None and corrected.so_far == pytest.approx(3.0)


def test_amounts_of_another_currency_are_not_added() -> None:
    spent = cost(
        of(started(0), priced(0, 5.0, "$"), finished(HOUR), started(HOUR, 2), priced(HOUR, 3.0, "€")), 2 * HOUR
    )
    assert str(spent) == "€3.00"


def test_a_clock_that_jumps_back_costs_nothing_negative() -> None:
    spent = cost(of(started(10 * HOUR), priced(1, 5.0), step(2, 1)), now=0.0)
    assert spent is not None and spent.so_far == 0.0


@pytest.mark.parametrize(
    ("text", "price"),
    [
        ("2.5", Price(2.5, "$")),
        ("$2.50", Price(2.5, "$")),
        (" € 2,50 ", Price(2.5, "€")),
        ("3 credits", Price(3.0, "credits")),
        ("0.6EUR", Price(0.6, "EUR")),
        ("", None),
        ("0", None),
    ],
)
def test_a_price_is_read_as_people_write_it(text: str, price: Price | None) -> None:
    assert Price.parse(text) == price


@pytest.mark.parametrize("text", ["1,000", "-2", "free", "$2 EUR", "2.5.1", "9999999", "1e3", "nan", "2 \x1b]0;x\x07"])
def test_what_is_no_price_is_a_sentence(text: str) -> None:
    with pytest.raises(UnusableInput, match="is not an amount") as refused:
        Price.parse(text)
    assert "\x1b" not in str(refused.value)


@given(st.floats(0, 1e6, allow_nan=False), st.text(max_size=8))
def test_money_is_never_obeyed_by_a_terminal(amount: float, currency: str) -> None:
    assert money(amount, currency).isprintable() or any(not c.isprintable() for c in currency)
    assert "\x1b" not in money(amount, currency) and "\n" not in money(amount, currency)


def test_small_amounts_have_digits_that_count() -> None:
    shown = [money(amount, "$") for amount in (0.0, 0.0004, 0.0123, 0.5, 1234.5)]
    assert shown == ["$0", "$<0.001", "$0.012", "$0.50", "$1,234.50"]
    assert money(2, "EUR") == "2.00 EUR"


@pytest.fixture
def ascii_alone() -> Iterator[None]:
    use_ascii(True)
    yield
    use_ascii(False)


def test_where_everything_is_ascii_a_currency_is_told_by_its_letters(ascii_alone: None) -> None:
    assert (money(1.2, "€"), money(1.2, "$"), money(1.2, "credits")) == ("1.20 EUR", "$1.20", "1.20 credits")


def test_the_price_is_on_record() -> None:
    assert '"event": "price"' in to_json(priced(0, 2.0))


def test_suggested_prices_name_their_source_and_day() -> None:
    suggestion = suggested_price("NVIDIA H100 80GB HBM3")
    assert suggestion is not None and Price.parse(f"{suggestion.per_hour}") == Price(suggestion.per_hour)
    assert str(suggestion).startswith("Suggestion: $") and "RunPod" in str(suggestion) and "2026-" in str(suggestion)
    assert suggested_price("Someone's own card") is None
