"""Rollback: version, preparation and drift reference come back together, once, whatever dies in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airflow_mlops.call import Call, Outcome
from airflow_mlops.call.dispatch import run
from airflow_mlops.errors import GateError, PromotionConflictError, RegistryError
from airflow_mlops.registry.check import differences
from tests import forked, toy
from tests.stages.test_promote import KILLED
from tests.toy import World

RACER = """
import json
from airflow_mlops.call import Call
from airflow_mlops.call.dispatch import run
from airflow_mlops.errors import MlopsError
call = Call.model_validate_json(sys.argv[3])
ready(sys.argv[2])
try:
    print(json.dumps(run(call).info["version"]))
except MlopsError as error:
    print(json.dumps(None))
"""


def promoted(world: World, *names: str) -> None:
    champion = None
    for name in names:
        version = toy.make_version(world, f"sha256:{name}", name)
        run(toy.make_promotion(world, version, champion, name))
        champion = version.uri.rpartition("/")[2]


def back(world: World, run_id: str = "back", **params: Any) -> Call:
    return Call(
        pipeline="toy",
        stage="rollback",
        run=run_id,
        params={"reason": "wrong prices", **params},
        store=world.store,
        registry=world.registry,
    )


def test_the_champion_before_comes_back_with_its_digest(world: World) -> None:
    promoted(world, "a", "b")
    outcome = run(back(world, by="ann"))
    champion = outcome.outputs["champion"]
    assert (champion.uri, champion.digest) == (f"models:/{world.registry.model}/1", "sha256:a")
    assert outcome.verdict.reasons == ("version 1 is the champion again, after 2: wrong prices",)
    state = toy.state_of(world)
    assert state["aliases"] == {"champion": "1"}
    assert state["versions"][1].tags["mlops.rolled_back"] == "wrong prices"
    assert (state["ledger"][-1].kind, state["ledger"][-1].by) == ("rollback", "ann")


def test_a_retry_changes_nothing_and_another_run_goes_back_one_more(world: World) -> None:
    promoted(world, "a", "b", "c")
    done = run(back(world))
    before = toy.state_of(world)
    assert run(back(world)).digest == done.digest
    assert toy.state_of(world) == before
    run(back(world, "again"))
    assert toy.state_of(world)["aliases"] == {"champion": "1"}


def test_of_rollbacks_and_promotions_at_once_the_ledger_stays_true(world: World) -> None:
    promoted(world, "a", "b", "c")
    version = toy.make_version(world, "sha256:d", "d")
    calls = [back(world, f"back-{name}", version="2") for name in "xy"]
    calls.append(toy.make_promotion(world, version, "3", "d"))
    said = toy.race(RACER, Path(world.store), [(call.run, call.model_dump_json()) for call in calls])
    assert [each for each in said if each is not None]
    registry = toy.registry_of(world.store, world.registry)
    registry.project()
    assert differences(registry) == []
    for entry in registry.ledger.entries()[3:]:
        assert entry.champion_before != entry.champion_after


@pytest.mark.parametrize("step", ["before the entry", "after the entry", "after one alias", "before the outcome"])
def test_a_retry_after_a_kill_ends_right(world: World, step: str) -> None:
    promoted(world, "a", "b", "c")
    forked.killed(KILLED, back(world).model_dump_json(), step)
    run(back(world))
    registry = toy.registry_of(world.store, world.registry)
    assert toy.state_of(world)["aliases"] == {"champion": "2", "previous": "1"}
    assert [entry.kind for entry in registry.ledger.entries()] == ["promotion"] * 3 + ["rollback"]
    assert differences(registry) == []


def test_a_challenger_that_was_judged_against_the_version_taken_away_is_refused(world: World) -> None:
    promoted(world, "a", "b")
    call = toy.make_promotion(world, toy.make_version(world, "sha256:c", "c"), "2", "c")
    run(back(world))
    before = toy.state_of(world)
    with pytest.raises(PromotionConflictError, match="judged against champion 2, but the champion is now 1"):
        run(call)
    assert toy.state_of(world) == before


def test_without_a_reason_nothing_happens(world: World) -> None:
    promoted(world, "a", "b")
    before = toy.state_of(world)
    with pytest.raises(RegistryError, match="needs a reason"):
        run(back(world, reason="  "))
    assert toy.state_of(world) == before


LAX = {"validate_model": {"versus_champion": None}}


def trained(world: World, month: str, run_id: str) -> dict[str, Outcome]:
    declaration = toy.declare(world.folder, world.registry.model, **LAX)
    return toy.run_plan(declaration, month, run_id, world.store, world.registry)


def test_monitoring_and_predictions_follow_the_version_that_is_back(world: World) -> None:
    """January's champion knows ``amount`` around 0, February's around 3: March is like January."""
    toy.months(world.folder, ("2024-01", "2024-03"))
    toy.months(world.folder, ("2024-02",), shift=3.0)
    trained(world, "2024-01", "jan")
    trained(world, "2024-02", "feb")
    declaration = toy.declare(world.folder, world.registry.model, **LAX)

    def march(run_id: str) -> Outcome:
        return toy.run_monitor(declaration, "2024-03", run_id, world.store, world.registry)

    assert march("before").verdict.status == "drift"
    run(back(world))
    assert march("after").verdict.status == "ok"
    predicted = toy.run_predict(declaration, "2024-03", "score", world.store, world.registry)["batch_predict"]
    assert predicted.info["champion"] == "1"


def test_what_was_taken_back_is_not_promoted_by_training_it_once_more(world: World) -> None:
    toy.months(world.folder, ("2024-01", "2024-02"))
    trained(world, "2024-01", "jan")
    trained(world, "2024-02", "feb")
    run(back(world))
    again = trained(world, "2024-02", "again")
    assert again["validate_model"].verdict.status == "held"
    assert (
        "a rollback took the title from this very model (wrong prices)" in again["validate_model"].verdict.reasons[-1]
    )
    assert toy.state_of(world)["aliases"]["champion"] == "1"
    assert "promote" not in again
    call = toy.next_call(
        toy.declare(world.folder, world.registry.model, **LAX),
        "promote",
        again,
        "2024-02",
        "again",
        world.store,
        world.registry,
    )
    with pytest.raises(GateError, match="was not passed"):
        run(call)
