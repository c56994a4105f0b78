"""Extraction never holds a window in memory, and a disk that is full leaves nothing half-written."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from airflow_mlops.call import Store
from airflow_mlops.errors import StoreFullError
from airflow_mlops.spec.stages import Extract
from airflow_mlops.stages.extract import extract
from airflow_mlops.stages.tables import read_table
from tests import toy
from tests.toy import finish, start

ROWS = 2_000_000

# The peak is the kernel's own count. The process extracts a small table first: its imports and pools are no rows.
EXTRACT = """
import json, re, sys
from pathlib import Path
from airflow_mlops.call import Store
from airflow_mlops.spec.stages import Extract
from airflow_mlops.stages.extract import extract
def extracted(source):
    return extract(Extract.model_validate({"source": json.loads(source)}), None, Store(sys.argv[1])).rows
def resident(what):
    return int(re.search(what + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
extracted(sys.argv[2])
before = resident("VmRSS")
rows = extracted(sys.argv[3])
print(json.dumps({"rows": rows, "before": before, "peak": resident("VmHWM")}))
"""


def grown(folder: Path, small: object, large: object, rows: int = ROWS, **environment: str) -> float:
    """By how many MiB the peak grows from a small source to a large one."""
    arguments = (str(folder / "store"), json.dumps(small), json.dumps(large))
    found = finish(start(EXTRACT, *arguments, **environment))
    assert found["rows"] == rows
    return float(found["peak"] - found["before"])


def table(rows: int) -> pa.Table:
    """Eight columns of noise, 64 bytes a row: `ROWS` rows are 122 MiB."""
    random = np.random.default_rng(0)
    return pa.table({f"x{column}": random.normal(size=rows) for column in range(8)})


def test_a_parquet_file_of_one_row_group_streams(tmp_path: Path) -> None:
    pq.write_table(table(10), tmp_path / "small.parquet")
    # 244 MiB. Measured: 104 MiB for half of them, and 114 for all.
    pq.write_table(table(2 * ROWS), tmp_path / "large.parquet", row_group_size=2 * ROWS)
    assert grown(tmp_path, str(tmp_path / "small.parquet"), str(tmp_path / "large.parquet"), 2 * ROWS) < 180


def test_a_csv_file_streams(tmp_path: Path) -> None:
    pacsv.write_csv(table(10), tmp_path / "small.csv")
    part = table(ROWS // 8)
    with pacsv.CSVWriter(tmp_path / "large.csv", part.schema) as writer:
        for _ in range(8):
            writer.write_table(part)
    # Text and rows together are 430 MiB. Measured: 218 MiB for these, and 203 for twice as many.
    assert (tmp_path / "large.csv").stat().st_size > 250 << 20
    assert grown(tmp_path, str(tmp_path / "small.csv"), str(tmp_path / "large.csv")) < 300


def test_a_database_streams(postgres: str, tmp_path: Path) -> None:
    columns = ", ".join(f"i * {column}.5::float8 AS x{column}" for column in range(8))
    query = f"SELECT {columns} FROM generate_series(1, :count) i"
    small, large = ({"connection": "big", "query": query.replace(":count", str(count))} for count in (10, ROWS))
    connection = json.dumps({"conn_type": "postgres", "host": postgres, "login": "postgres", "schema": "postgres"})
    assert grown(tmp_path, small, large, AIRFLOW_CONN_BIG=connection) < 100


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=False, capture_output=True)
    if mount.returncode:
        pytest.skip("may not mount here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_leaves_nothing_and_says_what_to_do(small_disk: Path, tmp_path: Path) -> None:
    pq.write_table(table(200_000), tmp_path / "large.parquet")
    store = Store(str(small_disk / "store"))
    params = Extract(source=str(tmp_path / "large.parquet"))
    with pytest.raises(StoreFullError, match="No space left.*free space.*clear the task") as caught:
        extract(params, None, store)
    assert not caught.value.retryable
    assert not [file for file in small_disk.rglob("*") if file.is_file()]
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    assert read_table(extract(params, None, store), store) == table(200_000)


LIMITED = """
import json, resource, sys
from airflow_mlops.call import Store
from airflow_mlops.errors import StoreFullError
from airflow_mlops.spec.stages import Extract
from airflow_mlops.stages.extract import extract
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    extract(Extract(source=sys.argv[2]), None, Store(sys.argv[1]))
except StoreFullError as error:
    print(json.dumps(str(error)))
"""


def test_a_limit_of_file_sizes_is_a_full_disk(tmp_path: Path) -> None:
    toy.write(table(200_000), tmp_path / "large.parquet")
    said = finish(start(LIMITED, str(tmp_path / "store"), str(tmp_path / "large.parquet")))
    assert "has no room" in said
    assert not [file for file in (tmp_path / "store").rglob("*") if file.is_file()]
