"""Parsing is light: what a DAG file imports brings none of the heavy libraries with it."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"airflow", "duckdb", "evidently", "google", "matplotlib", "mlflow", "numpy", "pandas", "pyarrow", "scipy"}
HEAVY |= {"skops", "sklearn"}

# An interpreter that starts with the namespace `google` has it from a .pth file, not from us.
IMPORT = """
import importlib, sys
before = set(sys.modules)
importlib.import_module(sys.argv[1])
print(*{name.split(".")[0] for name in set(sys.modules) - before})
"""


def loaded(module: str) -> set[str]:
    command = [sys.executable, "-c", IMPORT, module]
    return HEAVY & set(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split())


@pytest.mark.parametrize(
    "module",
    [
        "airflow_mlops",
        "airflow_mlops.spec",
        "airflow_mlops.spec.wiring",
        "airflow_mlops.call",
        "airflow_mlops.call.dispatch",
        "airflow_mlops.call.source",
        "airflow_mlops.registry",
    ],
)
def test_the_light_half_loads_nothing_heavy(module: str) -> None:
    assert loaded(module) == set()


def test_the_heavy_half_would_be_seen() -> None:
    assert "pandas" in loaded("airflow_mlops.stages.rows")
