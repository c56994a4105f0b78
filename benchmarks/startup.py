"""Start-up: what importing the package costs, and what a DAG file of pipelines costs to parse."""

from __future__ import annotations

import json
import os
from pathlib import Path
from statistics import median

from benchmarks.cost import compiled, python
from benchmarks.data import write_dag_file, write_declaration
from benchmarks.table import Row, Table

IMPORT_MS, ONE_S, HUNDRED_S = 50, 0.3, 2.0
HEAVY = ("pandas", "numpy", "sklearn", "mlflow", "evidently", "pyarrow")
SDK = "import airflow.sdk"
PARSE = """
import airflow.sdk, json, runpy, sys
found = runpy.run_path(sys.argv[1])
dags = sum(isinstance(each, airflow.sdk.DAG) for each in found.values())
print(json.dumps({"dags": dags, "modules": sorted({name.split(".")[0] for name in sys.modules})}))
"""


def measure_import(table: Table, repeat: int) -> None:
    """Bare interpreters and interpreters that import the package, in turn."""
    print(f"\nimport airflow_mlops, {repeat} pairs of interpreters", flush=True)
    environment = dict(os.environ)
    bare, ours = [], []
    for _ in range(repeat + 1):
        bare.append(python("-c", "pass", environment=environment)[0].cpu * 1000)
        ours.append(python("-c", "import airflow_mlops", environment=environment)[0].cpu * 1000)
    # The first pair only warms the disk.
    beyond = median(each - base for each, base in zip(ours[1:], bare[1:], strict=True))
    table.difference(
        "import airflow_mlops / bare interpreter",
        median(bare[1:]) + beyond,
        median(bare[1:]),
        IMPORT_MS,
        "CPU ms",
    )


def measure_parse(table: Table, home: Path, repeat: int) -> None:
    """A DAG file with one pipeline and one with a hundred, each in interpreters of its own."""
    print(f"\nparsing, {repeat} times each", flush=True)
    for count in (1, 100):
        write_declaration(home / str(count), count)
    one, hundred = (str(write_dag_file(home / str(count))) for count in (1, 100))
    environment = compiled(home / "pycache", AIRFLOW_HOME=str(home / "airflow"))
    beyond, more, sdk = [], [], []
    for _ in range(repeat + 1):
        base, _ = python("-c", SDK, environment=environment)
        single, printed = python("-c", PARSE, one, environment=environment)
        many, printed_many = python("-c", PARSE, hundred, environment=environment)
        sdk.append(base.cpu)
        beyond.append(single.cpu - base.cpu)
        more.append(many.cpu - single.cpu)
    loaded = sorted(set(HEAVY) & set(json.loads(printed.splitlines()[-1])["modules"]))
    dags = [json.loads(text.splitlines()[-1])["dags"] for text in (printed, printed_many)]
    assert dags == [3, 300], dags
    table.add(Row("parse a DAG file: heavy libraries loaded", ", ".join(loaded) or "none", "", "", "none", not loaded))
    # The first round compiled what it imported.
    base_cpu, one_cpu, more_cpu = median(sdk[1:]), median(beyond[1:]), median(more[1:])
    table.difference("parse 1 pipeline / import airflow.sdk", base_cpu + one_cpu, base_cpu, ONE_S)
    table.difference("parse 100 pipelines / parse 1", base_cpu + one_cpu + more_cpu, base_cpu + one_cpu, HUNDRED_S)
