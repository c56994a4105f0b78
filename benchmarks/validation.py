"""Validation of many rows in little memory, against pandera by itself on the same batches."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from airflow_mlops.call import Store
from benchmarks.cost import MIB, compiled, python
from benchmarks.table import Row, Table

ROWS = 10_000_000
NUMBERS, TEXTS = 14, 3
MOST_MIB = 500
CHAMPION_ROWS = 100_000
_GROUP = 65_536
_NUMBERS = [f"n{each:02d}" for each in range(NUMBERS)]
_LEVELS = [f"level-{code:02d}" for code in range(12)]
SCHEMA = {
    "columns": {
        "id": {"type": "integer", "max_null_fraction": 0},
        "at": {"type": "timestamp", "max_null_fraction": 0},
        **{
            f"n{each:02d}": {"type": "number", "min": -4, "max": 4, "max_null_fraction": 0.05}
            for each in range(NUMBERS)
        },
        **{f"c{each}": {"type": "string", "categories": _LEVELS} for each in range(TEXTS)},
        "y": {"type": "integer", "categories": [0, 1]},
    },
    "unique": ["id"],
    "checks": [{"left": "n00", "op": "<=", "right": "n01", "on_violation": "warn"}],
    "quarantine": {"max_share": 0.01},
}
WITH_CHAMPION = {"skew": {}, "volume": {"max_ratio": None}}
OURS = """
import sys
from pathlib import Path
from airflow_mlops.spec import DataSchema
from airflow_mlops.stages.validate_data import validate
from benchmarks.validation import SCHEMA
rules = DataSchema.model_validate(SCHEMA)
result = validate(Path(sys.argv[1]), rules, target="y", time="at", bad=Path(sys.argv[1] + ".bad.parquet"))
print(result.rows - result.kept)
"""
CHAMPION = """\
apiVersion: airflow-mlops/v1
name: champion
data: {source: champion.parquet, target: y, key: [id], drop: [at]}
train: {estimator: sklearn.linear_model.LogisticRegression}
evaluate: {plots: false, importance_rows: 0}
"""
STAGE = """
import sys
from airflow_mlops.call import ArtifactRef, Call, RegistryRef
from airflow_mlops.call.dispatch import run
from benchmarks.validation import SCHEMA, WITH_CHAMPION
store, uri, data = sys.argv[1:]
registry = RegistryRef(uri=uri, model="champion", experiment="champion")
params = {"schema": {**SCHEMA, **WITH_CHAMPION}, "target": "y", "time": "at"}
inputs = {"data": ArtifactRef.model_validate_json(data)}
call = Call(pipeline="champion", stage="validate_data", run="benchmark", inputs=inputs, params=params, store=store,
            registry=registry)
print(int(run(call).metrics["quarantined"]))
"""
PEER = """
import sys
import pandera.pandas as pandera
import pyarrow.parquet as pq
from pandera.errors import SchemaErrors
from benchmarks.validation import SCHEMA
columns = {}
for name, rule in SCHEMA["columns"].items():
    checks = [pandera.Check.in_range(-4, 4)] if "min" in rule else []
    checks += [pandera.Check.isin(rule["categories"])] if "categories" in rule else []
    columns[name] = pandera.Column(None, checks, nullable=rule.get("max_null_fraction") != 0)
schema = pandera.DataFrameSchema(columns)
broken = 0
for batch in pq.ParquetFile(sys.argv[1], pre_buffer=False).iter_batches(65_536):
    try:
        schema.validate(batch.to_pandas(), lazy=True)
    except SchemaErrors as errors:
        broken += len(errors.failure_cases)
print(broken)
"""


def measure(table: Table, home: Path, rows: int) -> None:
    """Validate the rows in a process of their own, and let pandera alone do its part of it in another."""
    home.mkdir(parents=True, exist_ok=True)
    file = home / f"{rows}.parquet"
    if not file.exists():
        write(file, rows)
    root = str(Path(__file__).parents[1])
    environment = compiled(home / "cache", PYTHONPATH=root)
    ours, aside = python("-c", OURS, str(file), environment=environment)
    peer, _ = python("-c", PEER, str(file), environment=environment)
    what = f"validate {rows:,} rows x 20, {int(aside):,} set aside"
    table.ratio(f"{what} / bare pandera, no key, no quarantine", ours.cpu, peer.cpu, None)
    peak = ours.rss / MIB
    table.add(Row(what, f"{peak:.0f} MiB", f"{peer.rss / MIB:.0f} MiB", "", f"< {MOST_MIB} MiB", peak < MOST_MIB))
    measure_stage(table, home, rows, file)


def measure_stage(table: Table, home: Path, rows: int, file: Path) -> None:
    """The whole stage: the rows also against a champion, and those that go on written anew."""
    (home / "champion.yaml").write_text(CHAMPION)
    write(home / "champion.parquet", min(rows, CHAMPION_ROWS))
    environment = compiled(home / "cache", PYTHONPATH=str(Path(__file__).parents[1]))
    store, uri = str(home / "store"), f"sqlite:///{home}/mlflow.db"
    where = ("--store", store, "--registry", uri)
    python("-m", "airflow_mlops", "run", "champion.yaml", *where, environment=environment, cwd=home)
    kept = Store(store)
    with kept.scratch(".parquet") as copy:
        copy.unlink()
        os.link(file, copy)
        data = kept.put_file(copy, "dataset", rows=rows)
    cost, _ = python("-c", STAGE, store, uri, data.model_dump_json(), environment=environment, cwd=home)
    peak = cost.rss / MIB
    what = "the same as a stage, with skew and volume, the good rows written anew"
    table.add(Row(what, f"{peak:.0f} MiB, {cost.cpu:.0f} CPU s", "", "", f"< {MOST_MIB} MiB", peak < MOST_MIB))


def write(file: Path, rows: int) -> None:
    """Twenty columns, some nulls, and every few thousandth row with a number out of its range."""
    random = np.random.default_rng(7)
    names = np.array(_LEVELS)
    fields = [("id", pa.int64()), ("at", pa.timestamp("us"))]
    fields += [(name, pa.float64()) for name in _NUMBERS]
    fields += [(f"c{each}", pa.string()) for each in range(TEXTS)]
    schema = pa.schema([*fields, ("y", pa.int64())])
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for first in range(0, rows, _GROUP):
            count = min(_GROUP, rows - first)
            numbers = random.normal(size=(count, NUMBERS))
            numbers[random.random(numbers.shape) < 0.02] = np.nan
            ids = np.arange(first, first + count)
            columns = [pa.array(ids), pa.array(1_704_067_200_000_000 + ids).cast(pa.timestamp("us"))]
            columns += [pa.array(numbers[:, each].copy()) for each in range(NUMBERS)]
            columns += [pa.array(names[random.integers(0, len(names), count)]) for _ in range(TEXTS)]
            writer.write_table(pa.table([*columns, pa.array(random.integers(0, 2, count))], schema=schema))
