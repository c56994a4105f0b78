"""Every declared dependency imports beside the others; a resolver does not see what breaks there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
REQUIRED = [*PROJECT["dependencies"], *(each for extra in PROJECT["optional-dependencies"].values() for each in extra)]
NAMES = [re.split(r"[\[<>=!~ ]", requirement, maxsplit=1)[0] for requirement in REQUIRED]
MODULES = {
    "apache-airflow": "airflow.sdk",
    "apache-airflow-providers-google": "airflow.providers.google.cloud.hooks.gcs",
    "apache-airflow-providers-standard": "airflow.providers.standard.operators.hitl",
    "apache-airflow-providers-apache-beam": "airflow.providers.apache.beam.hooks.beam",
    "apache-airflow-providers-celery": "airflow.providers.celery.executors.celery_executor",
    "apache-airflow-providers-fab": "airflow.providers.fab.auth_manager.fab_auth_manager",
    "evidently": "evidently.presets",
    "google-cloud-bigquery": "google.cloud.bigquery",
    "google-cloud-bigquery-storage": "google.cloud.bigquery_storage",
    "matplotlib": "matplotlib.figure",
    "mlflow": "mlflow.sklearn",
    "psycopg2-binary": "psycopg2",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn.ensemble",
    "skops": "skops.io",
}


def module_of(name: str) -> str:
    """The module that is imported for a dependency."""
    return MODULES.get(name, name.replace("-", "_"))


IMPORT = """
import importlib, json, sys, traceback
broken = {}
for module in sys.argv[1:]:
    try:
        importlib.import_module(module)
    except Exception:
        broken[module] = traceback.format_exc()
print(json.dumps(broken))
"""


@pytest.fixture(scope="module")
def broken() -> dict[str, str]:
    """The tracebacks of what does not import, all of it tried in one process."""
    command = [sys.executable, "-W", "ignore", "-c", IMPORT, *map(module_of, NAMES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_dependency_imports(broken: dict[str, str], name: str) -> None:
    assert broken.get(module_of(name)) is None
