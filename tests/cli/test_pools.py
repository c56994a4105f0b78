"""The pools that limit concurrent trainings: declared, checked, and made in a real Airflow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airflow_mlops.cli.main import main
from airflow_mlops.factory import load_dags

FLEET = """name: churn_{country}
for_each: {country: [de, fr]}
data: {source: a.parquet, target: y}
train: {estimator: sklearn.dummy.DummyClassifier}
pool: {name: trainings, slots: 2}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "churn.yaml"
    file.write_text(FLEET)
    return file


def test_only_the_heavy_stages_take_a_slot(file: Path) -> None:
    for dag in load_dags(str(file), {}).values():
        waiting = {task.task_id for task in dag.tasks if task.pool == "trainings"}
        assert waiting == ({"train"} if dag.dag_id.endswith(".train") else set())


def test_a_pool_has_one_size(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(
        FLEET
        + "---\n"
        + FLEET.replace("{country}", "all").replace("for_each: {country: [de, fr]}", "").replace(": 2", ": 3")
    )
    for command in ("lint", "pools"):
        assert main([command, str(file)]) == 1
        said = "".join(capsys.readouterr())
        assert ":11: pipeline 'churn_all': the pool 'trainings' has 3 slots here and 2 in pipeline 'churn_de'" in said


def test_pools_are_made_and_resized(file: Path, airflow_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from airflow.models.pool import Pool

    for slots in (2, 5):
        file.write_text(FLEET.replace("slots: 2", f"slots: {slots}"))
        assert main(["pools", str(file)]) == 0
        assert capsys.readouterr().out == f"pool trainings: {slots} slots\n"
        pool = Pool.get_pool("trainings")
        assert pool is not None and (pool.slots, pool.include_deferred) == (slots, True)


def test_pools_are_printed_for_whoever_makes_them(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pools", "--json", str(file)]) == 0
    assert json.loads(capsys.readouterr().out)["trainings"]["slots"] == 2
