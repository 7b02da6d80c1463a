"""Writes the rows of a Parquet or Arrow file as JSON lines.

A program of its own, started by `tuitune.data.columnar` as a child process, which is to start quickly:
`python columnar_reader.py parquet|arrow FILE COMPRESSION [count]`. With `count` it writes how many rows there are. Exit
code 1: the last line on stderr says why the file cannot be read.
"""

import json
import sys
from typing import Any

from tuitune.text import one_line


def _write_rows(kind: str, path: str, compression: str, what: str = "rows") -> None:
    """The rows as JSON lines, or their `count`, to standard output."""
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet

    source: Any = path
    if compression:
        source = pyarrow.BufferReader(pyarrow.input_stream(path, compression=compression).read())
    batches: Any
    count = -1
    if kind == "parquet":
        table = pyarrow.parquet.ParquetFile(source, memory_map=not compression)
        batches, count = table.iter_batches(batch_size=256), table.metadata.num_rows
    else:
        mapped = source if compression else pyarrow.memory_map(path)
        try:
            file = pyarrow.ipc.open_file(mapped)
            batches = (file.get_batch(i) for i in range(file.num_record_batches))
            if what == "count":
                count = file.count_rows()
        except pyarrow.ArrowInvalid:
            mapped.seek(0)
            batches = pyarrow.ipc.open_stream(mapped)
            if what == "count":
                count = sum(batch.num_rows for batch in batches)
    if what == "count":
        print(count)
    else:
        _write(batches)


def _write(batches: Any) -> None:
    out = sys.stdout
    for batch in batches:
        for start in range(0, batch.num_rows, 256):
            for row in batch.slice(start, 256).to_pylist():
                out.write(json.dumps({name: _present(value) for name, value in row.items()}, default=str) + "\n")


def _present(value: Any) -> Any:
    """The value without the fields that hold nothing: a table gives every object of a column the fields of all."""
    if isinstance(value, dict):
        return {name: _present(item) for name, item in value.items() if item is not None}
    return [_present(item) for item in value] if isinstance(value, list) else value


if __name__ == "__main__":
    try:
        _write_rows(*sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:
        print(one_line(error, max_length=160), file=sys.stderr)
        sys.exit(1)
