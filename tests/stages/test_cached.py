"""Models that are found again: the registry, the gate and the champion when nothing new was trained."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from airflow_mlops.call import Outcome, Store
from airflow_mlops.call.cache import INFO
from airflow_mlops.call.prune import prune
from airflow_mlops.errors import SchemaError
from airflow_mlops.registry.models import CARD, NOTE_TAG
from airflow_mlops.registry.requests import Request, Requests
from tests import toy
from tests.toy import World

EASY = {"versus_champion": {"min_rows": 50, "resamples": 200}}
FEATURES = "def build(rows):\n    return rows[['amount', 'member']]\n"


@pytest.fixture
def ready(world: World) -> World:
    toy.months(world.folder, ("2024-01", "2024-02"), 1500)
    return world


def train(world: World, run: str, month: str = "2024-01", **sections: Any) -> dict[str, Outcome]:
    declared = toy.declare(world.folder, "toy", **{"validate_model": EASY, **sections})
    return toy.run_plan(declared, month, run, world.store, world.registry)


def hits(outcomes: dict[str, Outcome]) -> set[str]:
    return {stage for stage, outcome in outcomes.items() if outcome.info.get(INFO, "").startswith("hit")}


def tags(world: World, run_id: str) -> dict[str, str]:
    found: dict[str, str] = MlflowClient(world.registry.uri).get_run(run_id).data.tags
    return found


def test_the_second_champion_is_found_again_too(ready: World) -> None:
    train(ready, "a", data={"drop": ["amount"]})
    assert train(ready, "b", "2024-02")["promote"].info["champion_before"] == "1"
    before = toy.state_of(ready)
    again = train(ready, "c", "2024-02")
    assert hits(again) == {"extract", "validate_data", "prepare", "train", "evaluate"}
    assert again["promote"].verdict.reasons == ("version 2 is the champion already; nothing has changed",)
    assert toy.state_of(ready) == before


def test_an_evaluation_against_another_champion_is_made_anew(ready: World) -> None:
    train(ready, "a")
    train(ready, "b", data={"drop": ["amount"]})
    assert toy.registry_of(ready.store, ready.registry).ledger.champion() == "1"
    promoted = train(ready, "c", train={"params": {"C": 0.9}}, validate_model={"versus_champion": {"margin": 0.5}})
    assert promoted["promote"].info["version"] == "3"
    again = train(ready, "d", data={"drop": ["amount"]})
    assert again["evaluate"].info[INFO].startswith("miss: champion changed from version 1 to version 3")


def test_the_same_rows_are_not_as_fresh_in_a_later_window(ready: World) -> None:
    (ready.folder / "schema.yaml").write_text(
        "columns: {at: {type: timestamp}}\nextra_columns: allow\nfreshness: {column: at, within: 9d}\n"
    )
    declared = toy.declare(
        ready.folder, "toy", data={"schema": "schema.yaml", "source": "data/2024-01.parquet", "time": None}
    )
    for run in ("a", "b"):
        checked = toy.run_plan(declared, "2024-01", run, ready.store, ready.registry, until="validate_data")
    assert hits(checked) == {"extract", "validate_data"}
    with pytest.raises(SchemaError, match="the newest 'at'"):
        toy.run_plan(declared, "2024-02", "c", ready.store, ready.registry, until="validate_data")


def test_a_model_that_was_rejected_is_judged_again_from_its_evidence(ready: World) -> None:
    train(ready, "a")
    rejected = train(ready, "b", data={"drop": ["amount"]})
    assert rejected["validate_model"].verdict.status == "rejected"
    again = train(ready, "c", data={"drop": ["amount"]})
    assert "evaluate" in hits(again) and "promote" not in again
    assert again["validate_model"].verdict == rejected["validate_model"].verdict
    assert [version.version for version in toy.state_of(ready)["versions"]] == ["1", "2"]


def test_a_model_of_other_code_is_another_version(ready: World) -> None:
    prepare = {"features": "cachedteam.features:build"}
    toy.package(ready.folder, "cachedteam", FEATURES)
    first = train(ready, "a", prepare=prepare)
    toy.package(ready.folder, "cachedteam", FEATURES + "# a comment\n")
    again = train(ready, "b", prepare=prepare)
    assert hits(again) == {"extract", "validate_data"}
    assert again["train"].info["run_id"] != first["train"].info["run_id"]
    # Its code is packed with a model, and answers in its place: equal weights do not make it the same model.
    assert again["register"].info["version"] == "2"
    assert "no champion yet" in tags(ready, first["train"].info["run_id"])[NOTE_TAG]
    assert [entry.version for entry in toy.state_of(ready)["ledger"]] == ["1", "2"]


def test_the_gate_shows_the_plots_of_an_evaluation_after_a_pruning(
    ready: World, caplog: pytest.LogCaptureFixture
) -> None:
    train(ready, "a", evaluate={"plots": True})
    at = time.time() - 100 * 86_400
    for file in Path(ready.store).rglob("*"):
        os.utime(file, (at, at))
    assert prune(Store(ready.store), timedelta(days=30)).records > 0

    def shown(run: str, limit: float) -> int:
        outcomes = train(ready, run, evaluate={"plots": True}, validate_model={"min": {"roc_auc": limit}})
        assert "evaluate" in hits(outcomes)
        client = MlflowClient(ready.registry.uri)
        page = Path(client.download_artifacts(outcomes["train"].info["run_id"], CARD)).read_text()
        assert f"{limit}" in page
        return page.count("data:image/png")

    plots = shown("b", 0.991)
    assert plots >= 4
    next(Path(ready.store, "artifacts", "plot").rglob("*.png")).unlink()
    assert shown("c", 0.992) == plots - 1, "a lost picture keeps nobody from the gate's answer"
    assert "the card goes without the plot" in caplog.text


def test_requests_that_led_to_the_same_model_are_settled(ready: World) -> None:
    train(ready, "a")
    requests = Requests(Store(ready.store), ready.registry.model)
    requests.open(Request(model=ready.registry.model, champion="1", reason="drift", trigger="drift"))
    requests.claim("b", lambda run: True)
    train(ready, "b")
    assert [recorded.state for recorded in requests.all()] == ["done"]


def test_a_champion_below_new_limits_is_rejected_and_stays(ready: World) -> None:
    train(ready, "a")
    outcomes = train(ready, "b", validate_model={"min": {"roc_auc": 1.0}})
    assert outcomes["validate_model"].verdict.status == "rejected"
    assert toy.registry_of(ready.store, ready.registry).ledger.champion() == "1"


def test_a_model_that_mlflow_has_lost_is_trained_anew(ready: World) -> None:
    first = train(ready, "a")
    MlflowClient(ready.registry.uri).delete_run(first["train"].info["run_id"])
    again = train(ready, "b")
    assert again["train"].info[INFO].startswith("miss: its model is lost: ")
    assert again["train"].info["run_id"] != first["train"].info["run_id"]
    assert "train" in hits(train(ready, "c"))


def test_without_a_comparison_a_second_model_still_takes_the_champions_place(ready: World) -> None:
    alone = {"validate_model": {"versus_champion": None}}
    train(ready, "a", **alone)
    second = train(ready, "b", "2024-02", **alone)
    assert second["promote"].info["champion_before"] == "1"
    assert "no comparison with the champion is declared" in second["validate_model"].verdict.reasons[0]
