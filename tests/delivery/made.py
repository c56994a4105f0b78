"""A small project to build and release, with code of its own, a schema, a sample; and places to release it to."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from airflow_mlops.delivery.bundle import Bundle, Manifest
from airflow_mlops.delivery.git import git
from airflow_mlops.delivery.places import Place
from airflow_mlops.delivery.release import deploy
from tests import toy

WHO = ("-c", "user.name=t", "-c", "user.email=t@example.org")
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


def repository(folder: Path) -> Path:
    """A bare repository with one commit of somebody else's."""
    git("init", "--quiet", "--bare", "--initial-branch", "main", "origin.git", folder=folder)
    git("clone", "--quiet", "origin.git", "theirs", folder=folder)
    push(folder / "theirs", "README", "theirs")
    return folder / "origin.git"


def push(tree: Path, name: str, text: str) -> None:
    (tree / name).write_text(text)
    git("checkout", "--quiet", "-B", "main", folder=tree)
    git("add", ".", folder=tree)
    git(*WHO, "commit", "--quiet", "--message", name, folder=tree)
    git("push", "--quiet", "origin", "main", folder=tree)


def release(
    place: Place,
    bundle: Bundle,
    watch: Callable[[Manifest, bool], None] = lambda *_: None,
    environment: str = "staging",
    **more: Any,
) -> Any:
    options = {"by": "ann", "source": "a test", "watch": watch, "timeout": timedelta(minutes=5), **more}
    return deploy(place, bundle, environment, **options)


def half_finished(place: Place, bundle: Bundle, until: datetime, environment: str = "staging") -> None:
    """What a process leaves that was killed after it had switched."""

    class Killed(Exception):
        pass

    def killed(*_: object) -> None:
        raise Killed

    finish = type(place).finish
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(place), "finish", lambda *_: None)
        with pytest.raises(Killed):
            release(place, bundle, killed, environment, timeout=(until - datetime.now(UTC)) / 2)
    assert type(place).finish is finish
