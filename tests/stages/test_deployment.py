"""From a gated version to a served one: golden rows in a clean process, a trial beside the champion, and the swap."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pytest

from airflow_mlops.call import Call, Outcome, Store
from airflow_mlops.call.dispatch import run
from airflow_mlops.errors import DeploymentError, GateError, TrialFailedError
from airflow_mlops.registry.ledger import Ledger
from airflow_mlops.registry.serving import live
from tests import toy
from tests.serving.client import Served, ledger, move
from tests.toy import Trained, World

pytestmark = pytest.mark.usefixtures("forked_servers")
GOOD = "def build(frame):\n    return frame[['amount', 'age']].fillna(0.0)\n"
# What the server's process computes is not what the training's did.
SKEWED = """
import sys
def build(frame):
    served = "scorer" in sys.argv[0]
    return frame[['amount', 'age']].fillna(0.0) * (0.0 if served else 1.0)
"""
FAILS = """
def build(frame):
    if (frame["region"] == "mars").any():
        raise ValueError("no such planet")
    return frame[['amount', 'age']].fillna(1.0)
"""


def train(world: World, month: str, code: str = GOOD, **deploy: Any) -> dict[str, Outcome]:
    """Train up to the gate; the next stage is the caller's."""
    toy.package(world.folder, "own", code)
    return toy.run_plan(declared(world, **deploy), month, month, world.store, world.registry, until="validate_model")


def declared(world: World, **deploy: Any) -> Any:
    return toy.declare(
        world.folder,
        world.registry.model,
        prepare={"features": "own.features:build"},
        validate_model={"versus_champion": None},
        deploy=deploy,
    )


def call_of(world: World, stage: str, outcomes: dict[str, Outcome], month: str, **params: Any) -> Call:
    outcomes = dict(outcomes)
    # What follows takes the decision from the stage before, which hands on the gate's.
    for each in ("validate_serving", "trial"):
        outcomes.setdefault(each, outcomes["validate_model"])
    deploy = {"strategy": {"canary": 50}} if stage == "trial" else {}
    call = toy.next_call(declared(world, **deploy), stage, outcomes, month, month, world.store, world.registry)
    return call.model_copy(update={"params": {**call.params, **params}})


def carry_on(world: World, outcomes: dict[str, Outcome], month: str, *stages: str, **params: Any) -> dict[str, Outcome]:
    for stage in stages:
        outcomes[stage] = run(call_of(world, stage, outcomes, month, **params))
    return outcomes


@pytest.fixture(scope="module")
def trained(mlflow_server: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Trained]:
    """January's model, and February's, which was evaluated when January's was the champion."""
    folder = tmp_path_factory.mktemp("trained")
    world = World(folder, str(folder / "store"), toy.registry_ref(mlflow_server, f"trained-{uuid.uuid4().hex[:10]}"))
    toy.months(folder)
    january = carry_on(world, train(world, "2024-01"), "2024-01", "promote")
    return Trained(world, "2024-01", january), Trained(world, "2024-02", train(world, "2024-02"))


@pytest.fixture
def promoted(world: World, trained: tuple[Trained, Trained]) -> World:
    """January's model is the champion."""
    toy.months(world.folder)
    toy.package(world.folder, "own", GOOD)
    outcomes = toy.adopt(world, trained[0], declared(world), until="validate_model")
    carry_on(world, outcomes, "2024-01", "promote")
    return world


@pytest.fixture
def outcomes(promoted: World, trained: tuple[Trained, Trained]) -> dict[str, Outcome]:
    """February's model has passed its gate; the next stage is the test's."""
    return toy.adopt(promoted, trained[1], declared(promoted), until="validate_model")


@contextmanager
def traffic(server: Served, table: pa.Table) -> Iterator[list[int]]:
    """Ask and ask in the background; the statuses so far."""
    said: list[int] = []
    over = threading.Event()

    def go() -> None:
        while not over.wait(0.02):
            said.append(server.predict(table).status)

    thread = threading.Thread(target=go)
    thread.start()
    try:
        yield said
    finally:
        over.set()
        thread.join()


def test_a_version_that_answers_as_in_training_goes_on(promoted: World, outcomes: dict[str, Outcome]) -> None:
    carry_on(promoted, outcomes, "2024-02", "validate_serving")
    outcome = outcomes["validate_serving"]
    assert outcome.verdict.status == "ok", outcome.verdict.reasons
    assert "50 golden rows are answered as in training" in outcome.verdict.reasons[0]
    told = {name: float(outcome.info[name]) for name in ("p50_ms", "p99_ms", "bytes")}
    assert 0 < told["p50_ms"] <= told["p99_ms"] and told["bytes"] > 1000
    assert outcome.outputs["decision"] == outcomes["validate_model"].outputs["decision"]
    # Nothing is on record yet: a yes is what follows.
    assert len(ledger(promoted).entries()) == 1


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({}, "away from what training saw"),
        ({"max_latency_ms": 0.01}, "one answer in a hundred takes"),
        ({"max_size": "1KiB"}, "large, and 1KiB is the most"),
        ({"timeout": "0s"}, "it cannot be served: a server of version 2 is not up after 0 s"),
    ],
    ids=["skew", "slow", "large", "down"],
)
def test_one_that_does_not_is_turned_away_and_nothing_else_changes(
    promoted: World, request: pytest.FixtureRequest, params: dict[str, Any], said: str
) -> None:
    outcomes = request.getfixturevalue("outcomes") if params else train(promoted, "2024-02", SKEWED)
    before = toy.state_of(promoted)
    call = call_of(promoted, "validate_serving", outcomes, "2024-02", **params)
    outcome = run(call)
    assert outcome.verdict.status == "rejected" and said in "; ".join(outcome.verdict.reasons)
    (entry,) = ledger(promoted).entries()[1:]
    assert (entry.kind, entry.version, entry.champion_after) == ("rejection", "2", "1")
    after = toy.state_of(promoted)
    assert after["aliases"] == {"champion": before["aliases"]["champion"]}
    # A retry asks nobody again, and writes nothing twice.
    assert run(call).verdict == outcome.verdict
    assert len(ledger(promoted).entries()) == 2


def test_a_version_without_golden_rows_is_told(world: World) -> None:
    version = toy.make_version(world, "sha256:a")
    promote = toy.make_promotion(world, version, None)
    with pytest.raises(GateError, match="has no golden rows"):
        run(promote.model_copy(update={"stage": "validate_serving"}))


def test_without_a_server_no_trial_begins(promoted: World, outcomes: dict[str, Outcome]) -> None:
    with pytest.raises(DeploymentError, match="nothing serves .* so no candidate can stand a trial"):
        run(call_of(promoted, "trial", outcomes, "2024-02"))
    assert len(ledger(promoted).entries()) == 1


def test_a_canary_that_holds_is_promoted_and_served(promoted: World, outcomes: dict[str, Outcome]) -> None:
    with Served(promoted, "--no-log") as server, traffic(server, toy.rows("2024-03", 2)) as said:
        rules = {"bake": "2s", "min_requests": 30}
        held = run(call_of(promoted, "trial", outcomes, "2024-02", **rules))
        assert held.verdict.status == "held" and held.info["since"]
        # The champion stays the champion while the candidate answers its share.
        server.follows("1", "2")
        carry_on(promoted, outcomes, "2024-02", "trial", **rules, wait=True)
        assert outcomes["trial"].verdict.status == "ok", outcomes["trial"].verdict.reasons
        carry_on(promoted, outcomes, "2024-02", "promote", "deploy")
        assert outcomes["deploy"].verdict.status == "ok"
        assert server.health()["champion"] == "2" and server.health()["candidate"] is None
    assert set(said) == {200} and len(said) > 50
    kinds = [(entry.kind, entry.version) for entry in ledger(promoted).entries()[1:]]
    assert kinds == [("trial", "2"), ("promotion", "2"), ("deployment", "2")]


def test_a_canary_that_fails_is_withdrawn_and_no_client_notices(promoted: World) -> None:
    outcomes = train(promoted, "2024-02", FAILS)
    table = toy.rows("2024-03", 1).drop_columns(["region"]).append_column("region", pa.array(["mars"]))
    with Served(promoted, "--no-log") as server, traffic(server, table) as said:
        call = call_of(promoted, "trial", outcomes, "2024-02", bake="60s", min_requests=10_000, wait=True)
        started = time.monotonic()
        with pytest.raises(TrialFailedError, match="requests failed .* and 2.00% is the most"):
            run(call)
        # Long before the time is up.
        assert time.monotonic() - started < 30
        server.follows("1")
        before = toy.state_of(promoted)
        with pytest.raises(TrialFailedError, match="was withdrawn"):
            run(call)
        assert toy.state_of(promoted) == before
    assert set(said) == {200}, set(said)
    last = ledger(promoted).entries()[-1]
    assert (last.kind, last.version, last.champion_after) == ("withdrawal", "2", "1")
    assert before["aliases"] == {"champion": "1"}


def test_a_trial_whose_run_is_lost_ends_by_itself(promoted: World, outcomes: dict[str, Outcome]) -> None:
    with Served(promoted, "--no-log") as server:
        run(call_of(promoted, "trial", outcomes, "2024-02"))
        server.follows("1", "2")
    entries = ledger(promoted)
    assert entries.traffic().candidate == "2"
    until = entries.entries()[-1].until
    assert until is not None
    import airflow_mlops.registry.ledger as module

    class Later(module.datetime):  # type: ignore[misc, name-defined]
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return until

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "datetime", Later)
        assert Ledger(entries._log.store, entries.model).traffic().candidate is None


def test_a_server_that_does_not_follow_takes_the_promotion_back_and_fails(promoted: World) -> None:
    """The server refuses pickles: the version is promoted, nobody serves it, and the champion before is back."""
    toy.package(promoted.folder, "own", GOOD)
    declaration = toy.declare(
        promoted.folder,
        promoted.registry.model,
        prepare={"features": "own.features:build"},
        validate_model={"versus_champion": None},
        train={"serialization": "cloudpickle"},
        deploy={"allow_pickle": True},
    )
    plan = (declaration, "2024-02", "2024-02", promoted.store, promoted.registry)
    outcomes = toy.run_plan(*plan, until="validate_serving")
    # Where the model is allowed to run code it is fit to be served.
    assert outcomes["validate_serving"].verdict.status == "ok"
    with Served(promoted, "--no-log") as server:
        assert server.ready["version"] == "1"
        carry_on(promoted, outcomes, "2024-02", "promote")
        server.wait(lambda: "cloudpickle" in str(live(Store(promoted.store), promoted.registry.model)[0].problem))
        move_back = call_of(promoted, "deploy", outcomes, "2024-02", timeout="5s")
        with pytest.raises(DeploymentError, match="cloudpickle.*version 1 was put back"):
            run(move_back)
        server.follows("1")
    # Tried again, or cleared, the task is as red as it was, and writes nothing more.
    before = toy.state_of(promoted)
    with pytest.raises(DeploymentError, match="cloudpickle.*version 1 was put back"):
        run(move_back)
    assert toy.state_of(promoted) == before
    last = ledger(promoted).entries()[-1]
    assert (last.kind, last.champion_before, last.champion_after) == ("rollback", "2", "1")


def test_where_nothing_serves_the_deployment_only_warns(promoted: World, outcomes: dict[str, Outcome]) -> None:
    carry_on(promoted, outcomes, "2024-02", "promote", "deploy")
    assert outcomes["deploy"].verdict.status == "warn"
    assert "nothing serves" in outcomes["deploy"].verdict.reasons[0]
    assert [entry.kind for entry in ledger(promoted).entries()] == ["promotion", "promotion"]


def test_a_deployment_of_what_was_rolled_back_meanwhile_changes_nothing(
    promoted: World, outcomes: dict[str, Outcome]
) -> None:
    carry_on(promoted, outcomes, "2024-02", "promote")
    move(promoted, "rollback", "1", "elsewhere")
    before = toy.state_of(promoted)
    assert run(call_of(promoted, "deploy", outcomes, "2024-02")).verdict.status == "warn"
    assert toy.state_of(promoted) == before


CLUELESS = """
def build(frame):
    return frame[['age']].fillna(0.0)
"""


@pytest.mark.parametrize(("labels", "ends"), [(True, "withdrawal"), (False, "trial")])
def test_a_canary_that_is_worse_by_its_labels_is_withdrawn(promoted: World, labels: bool, ends: str) -> None:
    """It answers every request, fast: only labels tell that it does not know what it says."""
    outcomes = train(promoted, "2024-02", CLUELESS)
    table = toy.rows("2024-03", 1200)
    if not labels:
        (promoted.folder / "data" / "2024-03.parquet").unlink()
    else:
        toy.months(promoted.folder, ("2024-03",), 1200)
    performance = {
        "labels": str(promoted.folder / "data" / "{window}.parquet"),
        "key": ["id"],
        "target": "y",
        "time": "at",
        "grain": "month",
    }
    rules = {"bake": "0s", "min_requests": 5, "metric_drop": 0.05, "performance": performance}
    with Served(promoted, "--flush", "0.2") as server:
        assert run(call_of(promoted, "trial", outcomes, "2024-02", **rules)).verdict.status == "held"
        server.follows("1", "2")
        for start in range(0, 1200, 20):
            assert server.predict(table.slice(start, 20)).status == 200
        server.wait(lambda: server.health()["logged"] == 1200)
        call = call_of(promoted, "trial", outcomes, "2024-02", **rules)
        server.wait(lambda: server.health()["versions"]["2"]["requests"] >= 5)
        time.sleep(3)  # the next heartbeat
        if labels:
            with pytest.raises(TrialFailedError, match="a loss of .* beyond 0.05"):
                run(call)
        else:
            outcome = run(call)
            assert outcome.verdict.status == "ok"
            assert "no labels have come yet, so metric_drop was not judged" in outcome.verdict.reasons
    assert ledger(promoted).entries()[-1].kind == ends


def test_a_rollback_is_served_before_it_says_so(promoted: World, outcomes: dict[str, Outcome]) -> None:
    carry_on(promoted, outcomes, "2024-02", "promote")
    back = call_of(promoted, "promote", outcomes, "2024-02").model_copy(
        update={"stage": "rollback", "run": "back", "inputs": {}, "params": {"reason": "wrong prices"}}
    )
    with Served(promoted, "--no-log") as server:
        assert server.ready["version"] == "2"
        outcome = run(back)
        assert server.health()["champion"] == "1"
        assert outcome.verdict.reasons[-1] == "version 1 is served by 1 of 1"
    assert [entry.kind for entry in ledger(promoted).entries()][-2:] == ["rollback", "deployment"]
    before = toy.state_of(promoted)
    run(back)
    assert toy.state_of(promoted) == before
