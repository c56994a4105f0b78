"""Start-up: what importing the package costs, and what a DAG file of pipelines costs to parse."""

from __future__ import annotations

import json
import os
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.cost import compiled, python
from benchmarks.data import write_dag_file, write_declaration, write_fleet
from benchmarks.table import Row, Table

IMPORT_MS, ONE_S, HUNDRED_S = 50, 0.3, 2.0
HEAVY = ("pandas", "numpy", "sklearn", "mlflow", "evidently", "pyarrow")
PARSE = """
import json, resource, runpy, sys
def cpu():
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)
begun = cpu()
import airflow.sdk
imported = cpu()
found = runpy.run_path(sys.argv[1])
parsed = cpu()
dags = sum(isinstance(each, airflow.sdk.DAG) for each in found.values())
modules = sorted({name.split(".")[0] for name in sys.modules})
print(json.dumps({"sdk": imported - begun, "parse": parsed - imported, "dags": dags, "modules": modules}))
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


def measure_parse(table: Table, home: Path, repeat: int, *, warm_up: bool) -> None:
    """A DAG file with one pipeline, with a hundred and with a fleet of a hundred, each in interpreters of its own."""
    print(f"\nparsing, {repeat} times each", flush=True)
    for count in (1, 100):
        write_declaration(home / str(count), count)
    write_fleet(home / "fleet", 100)
    files = [str(write_dag_file(home / name)) for name in ("1", "100", "fleet")]
    environment = compiled(home / "pycache" if warm_up else None, AIRFLOW_HOME=str(home / "airflow"))
    # The cost beyond the import is taken in the same interpreter, and compiled files are made by a first round.
    rounds = [[_parse(file, environment) for file in files] for _ in range(repeat + warm_up)][warm_up:]
    loaded = sorted(set(HEAVY) & {name for each in rounds for found in each for name in found["modules"]})
    assert all([found["dags"] for found in each] == [3, 300, 300] for each in rounds)
    table.add(Row("parse a DAG file: heavy libraries loaded", ", ".join(loaded) or "none", "", "", "none", not loaded))
    sdk = median(found["sdk"] for each in rounds for found in each)
    single, many, fleet = (median(each[index]["parse"] for each in rounds) for index in range(3))
    table.difference("parse 1 pipeline / import airflow.sdk", sdk + single, sdk, ONE_S)
    table.difference("parse 100 pipelines / parse 1", sdk + many, sdk + single, HUNDRED_S)
    table.difference("parse for_each of 100 / parse 1", sdk + fleet, sdk + single, HUNDRED_S)


def _parse(file: str, environment: dict[str, str]) -> dict[str, Any]:
    _, printed = python("-c", PARSE, file, environment=environment)
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return found
