"""Datasets: read, recognised, split, tokenised and audited."""

from tuitune.data.dataset import Dataset, Row, open_dataset
from tuitune.data.formats import Format
from tuitune.template import Sample

__all__ = ["Dataset", "Format", "Row", "Sample", "open_dataset"]
