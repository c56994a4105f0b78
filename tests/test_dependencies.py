"""Every declared dependency imports beside the others; a resolver does not see what breaks there."""

from __future__ import annotations

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


@pytest.mark.parametrize("name", NAMES)
def test_a_dependency_imports(name: str) -> None:
    module = MODULES.get(name, name.replace("-", "_"))
    command = [sys.executable, "-W", "ignore", "-c", f"import {module}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
