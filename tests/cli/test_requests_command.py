"""``airflow-mlops requests``: the record of what asked for a retraining."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airflow_mlops.call import Store
from airflow_mlops.cli.main import main
from airflow_mlops.registry import Request, Requests
from airflow_mlops.spec.pipeline import Retrain
from tests import toy


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store where a person has approved one request, and the next one is held."""
    store = Store(str(tmp_path / "store"))
    requests, policy = Requests(store, "churn"), Retrain(mode="suggest")
    for month in ("2024-01", "2024-02"):
        wish = Request(
            model="churn",
            champion="1",
            reason=f"drift in {month}: amount moved",
            trigger="drift",
            window=toy.month(month),
            evidence="http://mlflow.example/report.html",
        )
        requests.ask(wish, policy, requests.standing(wish))
        if month == "2024-01":
            requests.put("churn.retrain/1", lambda run: True)
            requests.answer("churn.retrain/1", True, "ann", "ann approved")
            requests.claim("churn.train/1", lambda run: True, rung=True)
            requests.settle("churn.train/1", "version 2 was promoted")
    return store


def test_each_request_is_told_with_its_reason_decision_and_outcome(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["requests", "churn", "--store", store.root]) == 0
    told = capsys.readouterr().out
    first, second = told.split("drift  2024-02")
    for part in (
        "drift  2024-01  done\n  drift in 2024-01: amount moved\n  http://mlflow.example/report.html\n",
        "suggested: the policy asks a person\n",
        "asking [churn.retrain/1]\n",
        "started: ann approved\n",
        "claimed [churn.train/1]\n",
        "done: version 2 was promoted [churn.train/1]\n",
    ):
        assert part in first
    assert second.startswith("  held\n") and "held: the cooldown of 24 hours is on, until 20" in second


def test_as_json_every_step_is_there(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__AIRFLOW_MLOPS__STORE", store.root)
    assert main(["requests", "churn", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["state"], first["window"], first["trigger"], first["run"]) == (
        "done",
        "2024-01",
        "drift",
        "churn.train/1",
    )
    assert [step["state"] for step in first["steps"]] == ["suggested", "asking", "started", "claimed", "done"]
    assert first["steps"][2]["by"] == "ann"
    assert second["state"] == "held" and second["steps"][0]["until"] > second["steps"][0]["at"]


def test_a_name_that_the_store_does_not_know_is_an_error(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["requests", "chrun", "--store", store.root]) == 1
    assert "knows nothing of 'chrun'; allowed: churn" in capsys.readouterr().err
