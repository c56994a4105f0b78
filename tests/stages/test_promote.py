"""Promotion: only what the gate passed, only against the champion it was judged by, and once, whatever dies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airflow_mlops.call import Call, Outcome, Store
from airflow_mlops.call.dispatch import run
from airflow_mlops.errors import GateError, ModelNotFoundError, PromotionConflictError, StoreError
from airflow_mlops.registry import Request, Requests
from tests import forked, toy
from tests.toy import World

KILLED = """
import os, signal, sys
from pathlib import Path
from airflow_mlops.call import Call
from airflow_mlops.call.dispatch import run
from airflow_mlops.registry import ModelRegistry, Requests, mlflow_api
from airflow_mlops.registry.log import AppendLog
from airflow_mlops.registry.mlflow_rest import MlflowRest
from airflow_mlops.call.store import Store
step = sys.argv[2]
def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)
def after(owner, name):
    function = getattr(owner, name)
    def wrapper(*arguments, **options):
        function(*arguments, **options)
        die()
    setattr(owner, name, wrapper)
if step == "before the entry":
    AppendLog.append = die
elif step == "after the entry":
    ModelRegistry.project = die
elif step == "after one alias":
    after(MlflowRest, "set_alias")
elif step == "before the requests":
    Requests.settle = die
elif step == "after one request":
    made = Store.create_json
    def second(self, value, *parts):
        if parts[0] == "requests":
            made(self, value, *parts)
            die()
        return made(self, value, *parts)
    Store.create_json = second
elif step == "before the run's tag":
    MlflowRest.log = die
else:
    Store.write_outcome = die
run(Call.model_validate_json(sys.argv[1]))
"""
RACER = """
import json
from airflow_mlops.call import Call
from airflow_mlops.call.dispatch import run
from airflow_mlops.errors import PromotionConflictError
call = Call.model_validate_json(sys.argv[3])
ready(sys.argv[2])
try:
    print(json.dumps(run(call).info["version"]))
except PromotionConflictError as error:
    print(json.dumps(None))
"""


def first(world: World) -> Outcome:
    return run(toy.make_promotion(world, toy.make_version(world, "sha256:a"), None, "first"))


def second(world: World, champion: str | None = "1", **decision: object) -> Call:
    return toy.make_promotion(world, toy.make_version(world, "sha256:b"), champion, "second", **decision)


def requested(world: World, *runs: str) -> Requests:
    requests = Requests(Store(world.store), world.registry.model)
    for number, name in enumerate(runs):
        wish = Request(model=world.registry.model, champion=str(number), reason="r", trigger="drift")
        requests.open(wish)
        requests.claim(name, lambda run: True)
    return requests


def test_the_first_version_becomes_the_champion(world: World) -> None:
    outcome = first(world)
    assert (outcome.info["version"], outcome.verdict.reasons) == ("1", ("version 1 is the champion",))
    assert toy.state_of(world)["aliases"] == {"champion": "1"}
    assert outcome.outputs["champion"].uri == f"models:/{world.registry.model}/1"


def test_the_next_one_takes_its_place(world: World) -> None:
    first(world)
    registry = toy.registry_of(world.store, world.registry)
    call = second(world)
    registry.set_challenger("2")
    requests = requested(world, "second")
    outcome = run(call)
    assert outcome.info["champion_before"] == "1"
    state = toy.state_of(world)
    assert state["aliases"] == {"champion": "2", "previous": "1"}
    assert all(isinstance(version, str) for version in state["aliases"].values())
    entry = state["ledger"][-1]
    assert (entry.version, entry.champion_before, entry.reasons) == ("2", "1", ("it is better",))
    assert entry.requests == tuple(requests.claimed_by("second")) and len(entry.requests) == 1
    assert [recorded.state for recorded in requests.all()] == ["done"]


def test_a_retry_changes_nothing(world: World) -> None:
    first(world)
    call = second(world)
    done = run(call)
    before = toy.state_of(world)
    assert run(call).digest == done.digest
    assert toy.state_of(world) == before


def test_a_retry_after_yet_another_promotion_does_not_bring_the_old_one_back(world: World) -> None:
    call = toy.make_promotion(world, toy.make_version(world, "sha256:a"), None, "first")
    run(call)
    run(second(world))
    before = toy.state_of(world)
    run(call)
    assert toy.state_of(world) == before


@pytest.mark.parametrize("status", ["rejected", "insufficient_data", "error", "drift"])
def test_a_version_that_its_gate_did_not_pass_is_refused(world: World, status: str) -> None:
    first(world)
    call = second(world, status=status)
    before = toy.state_of(world)
    with pytest.raises(GateError, match="was not passed by its gate: it is better"):
        run(call)
    assert toy.state_of(world) == before


@pytest.mark.parametrize(
    ("forged", "said"),
    [
        ({"evaluation": None}, "names no evaluation"),
        ({"params": {"min": {"roc_auc": 0.9}}}, "says no: roc_auc 0.8000 is below 0.9"),
        ({"params": {"min": {"f1": 0.1}}}, "asks for 'f1', which was not evaluated; allowed: roc_auc"),
    ],
)
def test_a_verdict_that_its_evidence_does_not_give_is_refused(
    world: World, forged: dict[str, object], said: str
) -> None:
    first(world)
    call = second(world, **forged)
    before = toy.state_of(world)
    with pytest.raises(GateError, match=said):
        run(call)
    assert toy.state_of(world) == before


def test_evidence_about_another_champion_is_refused(world: World) -> None:
    first(world)
    other = Store(world.store).put_json(
        {"model": "sha256:b", "champion": None, "primary": "roc_auc", "metrics": {"roc_auc": 0.8}}, "evaluation"
    )
    call = second(world, evaluation=other.digest)
    before = toy.state_of(world)
    with pytest.raises(GateError, match="about different models"):
        run(call)
    assert toy.state_of(world) == before


def test_evidence_that_was_changed_since_is_refused(world: World) -> None:
    call = toy.make_promotion(world, toy.make_version(world, "sha256:a"), None)
    store = Store(world.store)
    evaluation = store.ref("evaluation", store.fetch_json(call.inputs["decision"])["evaluation"], ".json")
    text = Path(evaluation.uri).read_text()
    Path(evaluation.uri).write_text(text.replace("0.8", "0.99"))
    with pytest.raises(StoreError):
        run(call)
    assert toy.state_of(world)["ledger"] == []


def test_the_declared_gate_counts_and_not_a_laxer_one_that_the_verdict_names(world: World) -> None:
    first(world)
    call = second(world)
    strict = call.model_copy(update={"params": {"gate": {"min": {"roc_auc": 0.9}, "versus_champion": None}}})
    with pytest.raises(GateError, match="roc_auc 0.8000 is below 0.9"):
        run(strict)
    assert run(call).info["version"] == "2"


def test_where_a_person_must_approve_the_gate_alone_is_not_enough(world: World) -> None:
    call = toy.make_promotion(world, toy.make_version(world, "sha256:a"), None, "first")
    asking = call.model_copy(update={"params": {"needs_approval": True}})
    with pytest.raises(GateError, match="nobody has approved of version 1 in this run"):
        run(asking)
    assert toy.state_of(world)["ledger"] == []
    answer = {"approved": True, "by": "ann", "why": "ann approved"}
    run(call.model_copy(update={"stage": "approve", "params": answer}))
    assert run(asking).info["version"] == "1"


def test_a_decision_about_another_model_is_refused(world: World) -> None:
    first(world)
    call = second(world, model="sha256:a")
    before = toy.state_of(world)
    with pytest.raises(GateError, match="the decision is about model sha256:a, and version 2 is another"):
        run(call)
    assert toy.state_of(world) == before


def test_a_reference_that_claims_another_digest_than_the_registry_is_refused(world: World) -> None:
    version = toy.make_version(world, "sha256:a").model_copy(update={"digest": "sha256:z"})
    with pytest.raises(GateError, match="is another"):
        run(toy.make_promotion(world, version, None))
    assert toy.state_of(world)["ledger"] == []


def test_a_version_that_is_not_registered_is_refused(world: World) -> None:
    first(world)
    version = toy.make_version(world, "sha256:a").model_copy(update={"uri": f"models:/{world.registry.model}/9"})
    before = toy.state_of(world)
    with pytest.raises(ModelNotFoundError):
        run(toy.make_promotion(world, version, "1"))
    assert toy.state_of(world) == before


@pytest.mark.parametrize("champion", [None, "7"])
def test_a_version_judged_against_another_champion_is_refused(world: World, champion: str | None) -> None:
    first(world)
    call = second(world, champion=champion)
    requests = requested(world, "second")
    before = toy.state_of(world)
    with pytest.raises(PromotionConflictError, match="clear the evaluation") as caught:
        run(call)
    assert not caught.value.retryable
    assert toy.state_of(world) == before
    assert [recorded.state for recorded in requests.all()] == ["claimed"]


def test_of_versions_promoted_at_once_exactly_one_becomes_the_champion(world: World) -> None:
    first(world)
    calls = []
    for name in ("x", "y", "z"):
        version = toy.make_version(world, f"sha256:{name}", name)
        calls.append(toy.make_promotion(world, version, "1", name))
    contestants = [(call.run, call.model_dump_json()) for call in calls]
    said = toy.race(RACER, Path(world.store), contestants)
    (winner,) = [version for version in said if version is not None]
    state = toy.state_of(world)
    assert state["aliases"] == {"champion": winner, "previous": "1"}
    assert [entry.champion_after for entry in state["ledger"]] == ["1", winner]


@pytest.mark.parametrize(
    "step",
    [
        "before the entry",
        "after the entry",
        "after one alias",
        "before the requests",
        "after one request",
        "before the run's tag",
        "before the outcome",
    ],
)
def test_a_retry_after_a_kill_ends_right(world: World, step: str) -> None:
    first(world)
    call = second(world)
    requests = requested(world, "second", "second")
    forked.killed(KILLED, call.model_dump_json(), step)
    run(call)
    state = toy.state_of(world)
    assert state["aliases"] == {"champion": "2", "previous": "1"}
    assert [(entry.number, entry.version) for entry in state["ledger"]] == [(1, "1"), (2, "2")]
    assert len(state["ledger"][1].requests) == 2
    assert [recorded.state for recorded in requests.all()] == ["done", "done"]
    assert json.loads(run(call).model_dump_json())["info"]["version"] == "2"
