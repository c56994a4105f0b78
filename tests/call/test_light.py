"""Parsing is light: what a DAG file imports brings none of the heavy libraries with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from airflow_mlops.call.store import digest_of_file

HEAVY = {"airflow", "duckdb", "evidently", "google", "matplotlib", "mlflow", "numpy", "pandas", "pyarrow", "scipy"}
HEAVY |= {"adbc_driver_manager", "optuna", "pandera", "skops", "sklearn"}

# An interpreter that starts with the namespace `google` has it from a .pth file, not from us.
IMPORT = """
import importlib, sys
before = set(sys.modules)
for module in sys.argv[1:]:
    importlib.import_module(module)
print(*{name.split(".")[0] for name in set(sys.modules) - before})
"""


READ = """
import sys
from airflow_mlops.call import ArtifactRef, Store
from airflow_mlops.stages.tables import read_table
table = read_table(ArtifactRef(uri=sys.argv[1], digest=sys.argv[2], kind="dataset"), Store("memory://none"))
print(*table.column_names, "pandas" in sys.modules)
"""


def loaded(*modules: str) -> set[str]:
    command = [sys.executable, "-c", IMPORT, *modules]
    return HEAVY & set(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split())


def test_the_light_half_loads_nothing_heavy() -> None:
    light = ("spec", "spec.wiring", "call", "call.dispatch", "call.source", "registry")
    assert loaded("airflow_mlops", *(f"airflow_mlops.{module}" for module in light)) == set()


def test_the_heavy_half_would_be_seen() -> None:
    assert "pandas" in loaded("airflow_mlops.stages.rows")


def test_stages_that_look_at_arrow_columns_load_no_pandas() -> None:
    assert loaded("airflow_mlops.stages.extract", "airflow_mlops.stages.validate_data") == {"numpy", "pyarrow"}


def test_what_reads_models_needs_no_client_of_mlflow() -> None:
    stages = ("batch_predict", "deploy", "evaluate", "monitor", "monitor_performance", "validate_serving")
    modules = ["serving.main", "serving.scorer", *(f"stages.{stage}" for stage in stages)]
    assert "mlflow" not in loaded(*(f"airflow_mlops.{module}" for module in modules))


def test_stages_that_speak_to_the_registry_load_nothing_heavy() -> None:
    assert loaded(*(f"airflow_mlops.stages.{stage}" for stage in ("register", "validate_model", "promote"))) == set()


def test_reading_a_table_loads_no_pandas_and_makes_no_columns_of_its_path(tmp_path: Path) -> None:
    (tmp_path / "window=2013-01").mkdir()
    file = tmp_path / "window=2013-01" / "rows.parquet"
    pq.write_table(pa.table({"x": [1, 2]}), file)
    command = [sys.executable, "-c", READ, str(file), digest_of_file(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["x", "False"]
