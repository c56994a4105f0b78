"""What the tests share: an Airflow of their own, and no telemetry."""

import os
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).parents[1]
_home = tempfile.TemporaryDirectory(prefix="airflow-")
# Airflow reads these when it is imported.
os.environ |= {
    "AIRFLOW_HOME": _home.name,
    "AIRFLOW__CORE__DAGS_FOLDER": str(PROJECT / "dags"),
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}
# Where the declarations' packages lie.
sys.path.insert(0, str(PROJECT / "pipelines"))
