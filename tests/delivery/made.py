"""A small project to build and release: two declarations' worth of files, code of its own, a schema, a sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests import toy

FEATURES = '''"""The features of churn."""


def build(frame):
    """Numbers as they are."""
    return frame[["amount", "age"]].fillna(0.0)
'''


def project(folder: Path, name: str = "churn", **sections: Any) -> str:
    """Write a project and return the path of its declaration."""
    pipelines = folder / "pipelines"
    (pipelines / name).mkdir(parents=True)
    (pipelines / name / "features.py").write_text(FEATURES)
    (folder / "schemas").mkdir()
    (folder / "schemas" / f"{name}.yaml").write_text(
        "apiVersion: airflow-mlops/schema/v1\nextra_columns: allow\n"
        "columns: {id: {type: string}, at: {type: timestamp}, y: {type: integer, min: 0, max: 1}}\n"
    )
    (folder / "requirements.lock").write_text("scikit-learn==1.9.1\n")
    toy.write(toy.rows("2024-01", 400), folder / "samples" / f"{name}.parquet")
    body = {
        "name": name,
        "data": {
            "source": str(folder / "data" / "{window}.parquet"),
            "target": "y",
            "time": "at",
            "key": "id",
            "window": "month",
            "schema": f"../schemas/{name}.yaml",
        },
        "prepare": {"features": f"{name}.features:build"},
        "train": {"estimator": "sklearn.linear_model.LogisticRegression"},
        "tests": {"sample": f"../samples/{name}.parquet"},
        **sections,
    }
    file = pipelines / f"{name}.yaml"
    file.write_text(yaml.safe_dump(body))
    return str(file)
