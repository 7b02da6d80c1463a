"""Datasets: read, recognised, split, tokenised and audited."""

from tuitune.conversation import Sample
from tuitune.data.dataset import Dataset, Row, open_dataset
from tuitune.data.formats import Format

__all__ = ["Dataset", "Format", "Row", "Sample", "open_dataset"]
