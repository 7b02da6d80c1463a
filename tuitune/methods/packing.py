"""Documents laid end to end and cut into rows of one length."""

from typing import Any


def packed(rows: Any, max_length: int, seed: int) -> Any:
    """A datasets.Dataset with the documents of `rows` in an order drawn from the seed, cut every `max_length` tokens.

    Every token stands in exactly one row; only the last row may be shorter. A row may begin or end inside a document.
    """
    import datasets
    import numpy
    import pyarrow

    if not len(rows):
        return rows
    order = numpy.random.default_rng(seed).permutation(len(rows))
    table = rows.with_format("arrow")[order]
    columns = {}
    for name in ("input_ids", "labels"):
        values = table.column(name).combine_chunks().flatten()
        tokens = len(values)
        offsets = pyarrow.array([*range(0, tokens, max_length), tokens], type=pyarrow.int32())
        columns[name] = pyarrow.ListArray.from_arrays(offsets, values)
    fingerprint = datasets.fingerprint.generate_random_fingerprint()
    return datasets.Dataset(datasets.table.InMemoryTable(pyarrow.table(columns)), fingerprint=fingerprint)
