"""The DAGs of a pipeline, loaded in a fresh interpreter, as Airflow loads them all the time: without what is heavy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from airflow_mlops.errors import CodeError, DeclarationError, PromiseError
from airflow_mlops.spec import Declaration
from airflow_mlops.spec.base import format_duration

HEAVY = ("pandas", "numpy", "sklearn", "mlflow", "evidently", "pyarrow", "duckdb", "scipy", "google.cloud")
"""What loading DAGs must not load."""
_LOAD = """
import json, os, runpy, sys, time
import airflow.sdk
from airflow_mlops.call.code import told
from airflow_mlops.factory import load_dags
declaration, folder, files, heavy = json.loads(sys.argv[1])
before, started = set(sys.modules), time.process_time()
dags = load_dags(declaration, {})
seconds = time.process_time() - started
broken = [str(dag.description) for dag in dags.values() if "broken" in dag.tags]
loaded, failed = {}, []
def look(what):
    new = {name + "." for name in set(sys.modules) - before}
    if found := [library for library in heavy if any(name.startswith(library + ".") for name in new)]:
        loaded[what] = found
    before.update(sys.modules)
look("the declaration")
sys.path.append(folder)  # as Airflow does: one file may import another
for file in files:
    name = os.path.relpath(file)
    try:
        runpy.run_path(file)
    except (Exception, SystemExit) as error:
        failed.append(f"{name} does not load: {told(error)}")
    look(name)
print(json.dumps({"dags": sorted(dags), "seconds": seconds, "broken": broken, "heavy": loaded, "failed": failed}))
"""


def load_light(declaration: Declaration) -> str:
    """Load what Airflow would, in a fresh interpreter; return in words what it came to.

    Raises:
        CodeError: when DAGs do not load.
        DeclarationError: when the declaration makes none.
        PromiseError: when something heavy is loaded with them, or they take longer than ``tests.max_parse``.
    """
    file, folder = os.path.abspath(declaration.document.file), Path(declaration.base).parent / "dags"
    files = _dag_files(folder)
    # Where the sessions of a test look for an Airflow is no matter: nothing is asked of it.
    with tempfile.TemporaryDirectory(prefix="airflow-home-") as home:
        environment = {"AIRFLOW_HOME": home, "AIRFLOW__CORE__LOAD_EXAMPLES": "False", **os.environ}
        done = subprocess.run(
            [sys.executable, "-c", _LOAD, json.dumps([file, str(folder), files, HEAVY])],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise CodeError(f"the DAGs do not load: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    found = json.loads(done.stdout.splitlines()[-1])
    if found["broken"]:
        raise DeclarationError(found["broken"])
    if found["failed"]:
        raise CodeError("; ".join(found["failed"]))
    for what, names in found["heavy"].items():
        raise PromiseError(
            f"{what} loads {', '.join(names)}, which every parse of the DAGs would pay for",
            fix="import it inside the functions that need it",
        )
    most = declaration.pipeline.tests.max_parse
    told = f"{len(found['dags'])} DAGs in {found['seconds']:.2f} CPU s"
    if found["seconds"] > most.total_seconds():
        raise PromiseError(f"{told}, more than {format_duration(most)}")
    return told + (f", and {len(files)} DAG file{'s' if len(files) > 1 else ''}" if files else "")


def _dag_files(folder: Path) -> list[str]:
    """Those of a folder that are about pipelines, as their text tells; what else lies there is not ours to judge."""
    return [str(file) for file in sorted(folder.glob("*.py")) if b"airflow_mlops" in file.read_bytes()]
