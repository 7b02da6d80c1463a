"""How many rows there are is told without reading them all."""

import json
import os
from pathlib import Path

import pytest

from tests.engine.test_data import recipe, section
from tuitune.data import open_dataset
from tuitune.data.inspect import summary


def test_a_table_tells_how_many_rows_it_holds(tmp_path: Path) -> None:
    """They are not read for it, so that it does not matter that some cannot be."""
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet

    rows = pyarrow.Table.from_pylist([{"question": f"Ask {n}", "answer": "Ahoy"} for n in range(900)])
    table = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(rows, table, row_group_size=300, compression="zstd", use_dictionary=False)
    damaged = bytearray(table.read_bytes())
    second = pyarrow.parquet.ParquetFile(table).metadata.row_group(1).column(0)
    damaged[second.data_page_offset : second.data_page_offset + second.total_compressed_size] = bytes(
        second.total_compressed_size
    )
    table.write_bytes(damaged)
    assert sum(row.sample is not None for row in open_dataset(section(table))) < 900
    for open_file, name in ((pyarrow.ipc.new_file, "rows.arrow"), (pyarrow.ipc.new_stream, "stream.arrow")):
        with open_file(str(tmp_path / name), rows.schema) as writer:
            writer.write_table(rows, max_chunksize=100)
    for name in ("rows.parquet", "rows.arrow", "stream.arrow"):
        data = summary(recipe(tmp_path / name))
        assert (data["rows"], data["rows_estimated"]) == (900, False)
        assert open_dataset(section(tmp_path / name)).estimated_rows() == 900
        assert len(open_dataset(section(tmp_path / name, split="train[50:150]"))) == 100


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.jsonl.zst"])
def test_a_large_compressed_file_is_estimated_from_its_beginning(tmp_path: Path, name: str) -> None:
    import pyarrow

    words = os.urandom(8_500_000).hex()
    lines = "".join(
        json.dumps({"question": words[at : at + 850], "answer": words[at + 850 : at + 1700]}) + "\n"
        for at in range(0, len(words), 1700)
    )
    path = tmp_path / name
    with pyarrow.output_stream(str(path), compression="gzip" if name.endswith("gz") else "zstd") as stream:
        stream.write(lines.encode())
    assert path.stat().st_size > 8 * 2**20
    os.truncate(path, path.stat().st_size - 1000)  # the end is not read for it
    data = summary(recipe(path))
    assert data["rows_estimated"] and data["rows"] == pytest.approx(10_000, rel=0.05)
