"""A declared deployment in its DAG: a canary bakes without a worker, and one that fails leaves the run red."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from airflow_mlops.errors import TrialFailedError
from tests import toy
from tests.airflow_fixtures import Airflow
from tests.serving.client import Served
from tests.stages.test_deployment import FAILS, GOOD, traffic

pytestmark = pytest.mark.usefixtures("forked_servers")
CANARY = {"strategy": {"canary": 50}, "bake": "2s", "min_requests": 20}


def declare(airflow: Airflow, code: str, deploy: dict[str, Any]) -> None:
    toy.package(airflow.folder, "own", code)
    airflow.declare(
        retries=0,
        prepare={"features": "own.features:build"},
        validate_model={"versus_champion": None},
        deploy=deploy,
    )


@pytest.fixture
def first(airflow: Airflow) -> Airflow:
    """The first version, promoted without a trial: there was nobody to stand beside."""
    toy.months(airflow.folder)
    declare(airflow, GOOD, CANARY)
    run = airflow.run("train", conf={"window": "2024-01"})
    assert run.state == "success", (run.states, run.errors)
    assert [entry.kind for entry in airflow.ledger()] == ["promotion"]
    return airflow


def test_a_canary_bakes_in_the_triggerer_and_is_promoted(first: Airflow) -> None:
    with Served(first.world, "--no-log") as server, traffic(server, toy.rows("2024-03", 2)) as said:
        run = first.run("train", conf={"window": "2024-02"})
        assert run.state == "success", (run.states, run.errors)
        assert server.health()["champion"] == "2"
    assert set(said) == {200}
    assert [entry.kind for entry in first.ledger()] == ["promotion", "trial", "promotion", "deployment"]


def test_a_canary_that_breaks_a_rule_leaves_the_run_red_with_the_reason(first: Airflow) -> None:
    declare(first, FAILS, CANARY)
    table = toy.rows("2024-03", 1).drop_columns(["region"]).append_column("region", pa.array(["mars"]))
    with Served(first.world, "--no-log") as server, traffic(server, table) as said:
        run = first.run("train", conf={"window": "2024-02"})
        assert run.state == "failed" and run.states["trial"] == "failed"
        assert (run.states["promote"], run.states["deploy"]) == ("upstream_failed", "upstream_failed")
        (error,) = run.errors["trial"]
        assert isinstance(error, TrialFailedError) and "requests failed" in str(error)
        server.follows("1")
    assert set(said) == {200}
    assert [entry.kind for entry in first.ledger()] == ["promotion", "trial", "withdrawal"]
