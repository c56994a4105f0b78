"""``airflow-mlops pools``: the pools that declarations name, made by Airflow's own command."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from airflow_mlops.errors import DeclarationError, MlopsError
from airflow_mlops.spec import load_declarations
from airflow_mlops.spec.wiring import check_all


def declared_pools(files: list[str]) -> dict[str, dict[str, Any]]:
    """The pools of these files as ``airflow pools import`` takes them. A training that is deferred keeps its slot.

    Raises:
        DeclarationError: when a file is wrong, or one pool has two sizes.
    """
    declarations = [declaration for file in files for declaration in load_declarations(file)]
    problems = list(check_all(declarations))
    if problems:
        raise DeclarationError(problems)
    pools = [each.pipeline.pool for each in declarations if each.pipeline.pool]
    text = "Trainings of airflow-mlops pipelines"
    return {pool.name: {"slots": pool.slots, "description": text, "include_deferred": True} for pool in pools}


def make_pools(pools: dict[str, dict[str, Any]]) -> None:
    """Make the pools in the Airflow that this environment configures, or give those that are there their size.

    Raises:
        MlopsError: when Airflow refuses.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "pools.json")
        file.write_text(json.dumps(pools))
        command = [sys.executable, "-m", "airflow", "pools", "import", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = " ".join(done.stderr.strip().splitlines()[-3:])
        raise MlopsError(f"airflow pools import failed: {tail}", fix="run it where Airflow reaches its database")
