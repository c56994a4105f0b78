"""Every pipeline is right, trains, and passes its own gate; Airflow finds its DAGs."""

import json
from pathlib import Path

import pytest
from airflow_mlops.cli import main

PROJECT = Path(__file__).parents[1]
PIPELINES = sorted(map(str, (PROJECT / "pipelines").glob("*.yaml")))


def test_the_declarations_are_right(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", *PIPELINES]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("file", PIPELINES, ids=[Path(file).stem for file in PIPELINES])
def test_a_pipeline_trains_a_model_that_passes_its_gate(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = main(["run", file, "--registry", f"sqlite:///{tmp_path}/mlflow.db", "--approve", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert (code, told["status"]) == (0, "promoted"), told["error"] or told["stages"]["validate_model"]["verdict"]


def test_airflow_finds_the_dags() -> None:
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(str(PROJECT / "dags"))
    assert bag.import_errors == {}
    assert {f"{Path(file).stem}.train" for file in PIPELINES} <= set(bag.dags)
