"""Whether a reply's answer is the one in the data: as text, or as a number."""

import math
import re
from typing import Any

_MARKED = (
    re.compile(r"####\s*(.+)\s*$", re.DOTALL),
    re.compile(r"\\boxed\{([^{}]*)\}"),
    re.compile(r"<answer>(.*?)</answer>", re.DOTALL),
)
_NUMBER = re.compile(r"[-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?(?:\s*/\s*\d+)?")


def exact_match(options: dict[str, Any], reply: str, reference: Any) -> float:
    """1 where the answers are the same text but for white space around it, and for case where that is ignored."""
    answer, expected = answer_of(reply), answer_of(str(reference))
    if options["ignore_case"]:
        answer, expected = answer.casefold(), expected.casefold()
    return float(answer == expected)


def numeric_match(options: dict[str, Any], reply: str, reference: Any) -> float:
    """1 where the last number of the reply's answer is that of the reference. Raises ValueError where it has none."""
    expected = last_number(answer_of(str(reference)))
    if expected is None:
        raise ValueError(f"the right answer holds no number: {str(reference)[:80]!r}")
    number = last_number(answer_of(reply))
    if number is None:
        return 0.0
    return float(math.isclose(number, expected, rel_tol=options["tolerance"], abs_tol=options["tolerance"]))


def answer_of(text: str) -> str:
    """What is marked as the answer: behind the last ####, in the last \\boxed{} or <answer>; else the whole text."""
    if "####" in text:
        text = "####" + text.rpartition("####")[2]
    for pattern in _MARKED:
        answers = pattern.findall(text)
        if answers:
            return str(answers[-1]).strip()
    return text.strip()


def last_number(text: str) -> float | None:
    """The last number in a text: 1,234.50, -3, 1e6 or 3/4; None where there is none."""
    for match in reversed([match for match in _NUMBER.finditer(text) if any(map(str.isdigit, match[0]))]):
        number = match[0].replace(",", "").replace("−", "-")
        numerator, slash, denominator = number.partition("/")
        try:
            value = float(numerator) / float(denominator) if slash else float(numerator)
        except (ValueError, ZeroDivisionError):
            continue
        if math.isfinite(value):
            return value
    return None
