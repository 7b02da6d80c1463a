"""Reads Parquet and Arrow files in a process of its own: a file that crashes the reader ends only that process."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from tuitune.data.container import Container
from tuitune.data.lines import ROW, TOO_LONG, Record, lines, parse, unusable
from tuitune.language import _
from tuitune.text import one_line


def columnar_records(container: Container) -> Iterator[Record]:
    """Every row, written as JSON lines by a child process that is ended when the reader stops early."""
    command = [sys.executable, "-P", "-m", "tuitune.data.columnar", container.kind, str(container.path)]
    with subprocess.Popen(
        [*command, container.compression or ""],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        assert child.stdout and child.stderr
        try:
            for number, line in lines(child.stdout):
                yield unusable(TOO_LONG, ROW, number) if line is None else parse(line, ROW, number)
            error_text = child.stderr.read(4096).decode("utf-8", "replace").strip()
            code = child.wait()
            if code:
                reason = (
                    one_line(error_text.splitlines()[-1], max_length=160)
                    if error_text and code > 0
                    else _("its reader crashed")
                )
                problem = _(
                    "the {kind} file cannot be read beyond here ({reason}): fetch it again, or write it anew",
                    kind=container.kind,
                    reason=reason,
                )
                yield Record(None, problem)
        finally:
            child.kill()


def columnar_count(container: Container) -> int | None:
    """How many rows the file says it holds, without reading them; None where it cannot be read."""
    command = [sys.executable, "-P", "-m", "tuitune.data.columnar", container.kind, str(container.path)]
    child = subprocess.run(
        [*command, container.compression or "", "count"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    return int(child.stdout) if child.returncode == 0 and child.stdout.strip().isdigit() else None


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
