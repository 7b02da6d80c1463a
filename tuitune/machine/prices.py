"""What an hour of a rented card costs by public price lists: a suggestion to begin from, and never a run's price."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from tuitune.language import _

_FILE = Path(__file__).with_name("prices.yaml")


@dataclass(frozen=True, slots=True)
class SuggestedPrice:
    """US dollars an hour for a card, from which list, and the day it was read (ISO 8601)."""

    card: str
    per_hour: float
    source: str
    read: str

    def __str__(self) -> str:
        return _(
            "Suggestion: ${price:.2f}, {card} at {source}, {read}",
            price=self.per_hour,
            card=self.card,
            source=self.source,
            read=self.read,
        )


def suggested_price(card: str) -> SuggestedPrice | None:
    """The suggestion for a card by NVML's name for it; None for one that is in no list."""
    for prices in yaml.safe_load(_FILE.read_text()):
        if card in prices["cards"]:
            return SuggestedPrice(card, float(prices["cards"][card]), prices["source"], str(prices["read"]))
    return None
