"""An endpoint of Vertex AI follows the ledger: from a promoted version to a served one, a canary, and back."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from airflow_mlops.call import Call, Outcome, Store
from airflow_mlops.call.dispatch import run
from airflow_mlops.deployments import deployment_of
from airflow_mlops.errors import CloudAccessError, DeploymentError, TrialFailedError
from airflow_mlops.google.names import resource_id
from airflow_mlops.registry.ledger import Ledger
from airflow_mlops.spec.google import Google
from airflow_mlops.spec.wiring import problems_of
from tests import toy
from tests.google.made import Killed, Killer, mirrored, promote, section, traffic
from tests.loopback.rest import until
from tests.loopback.vertex_models import VertexModels
from tests.stages.test_deployment import FAILS, GOOD
from tests.toy import World

pytestmark = pytest.mark.usefixtures("forked_servers")
MONTHS = ("2024-01", "2024-02", "2024-03")


class Trained:
    """Three versions of one model up to their gates: the third fails on rows from Mars."""

    def __init__(self, world: World) -> None:
        self.world = world
        toy.months(world.folder)
        self.outcomes: dict[str, dict[str, Outcome]] = {}
        for month, code in zip(MONTHS, (GOOD, GOOD, FAILS), strict=True):
            toy.package(world.folder, "own", code)
            self.outcomes[month] = toy.run_plan(
                self.declared(), month, month, world.store, world.registry, until="validate_model"
            )
            if month == MONTHS[0]:
                promote(world, "1", "first")

    def declared(self, **more: Any) -> Any:
        return toy.declare(
            self.world.folder,
            self.world.registry.model,
            prepare={"features": "own.features:build"},
            validate_model={"versus_champion": None},
            **more,
        )


class Line:
    """The stages after the gate, on a ledger of the test's own."""

    def __init__(self, trained: Trained, world: World, google: Google) -> None:
        self.trained, self.world, self.google = trained, world, google

    @property
    def ledger(self) -> Ledger:
        return Ledger(Store(self.world.store), self.world.registry.model)

    def call(self, stage: str, month: str, **params: Any) -> Call:
        google = self.google.model_dump(mode="json", exclude_none=True)
        deploy = {"target": "vertex", "strategy": {"canary": 50} if stage == "trial" else "replace"}
        declared = self.trained.declared(deploy=deploy, google=google)
        outcomes = dict(self.trained.outcomes[month])
        for each in ("validate_serving", "trial"):
            outcomes.setdefault(each, outcomes["validate_model"])
        if stage == "deploy":
            outcomes["promote"] = self.promoted
        call = toy.next_call(declared, stage, outcomes, month, month, self.world.store, self.world.registry)
        return call.model_copy(update={"params": {**call.params, **params}})

    def carry(self, month: str, *stages: str, **params: Any) -> Outcome:
        for stage in stages:
            found = run(self.call(stage, month, **params))
            if stage == "promote":
                self.promoted = found
        return found

    def follow(self) -> None:
        target = deployment_of("vertex", {"google": self.google})
        target.follow(self.world.registry, Store(self.world.store))


@pytest.fixture(scope="module")
def trained(mlflow_server: str, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    name = f"Vertex_{folder.name}"
    return Trained(World(folder, str(folder / "store"), toy.registry_ref(mlflow_server, name)))


@pytest.fixture
def line(trained: Trained, tmp_path: Path, gcs: str, vertex_models: VertexModels) -> Line:
    """The first version is the champion by the ledger; nothing is on Google Cloud yet."""
    shutil.copytree(trained.world.store, tmp_path / "store")
    world = trained.world._replace(store=str(tmp_path / "store"))
    return Line(trained, world, section(gcs))


@pytest.fixture
def served(line: Line) -> Line:
    """The first version serves."""
    line.follow()
    return line


def standing(service: VertexModels) -> dict[str, int]:
    """What is deployed on the one endpoint, by MLflow's version, with its share of the traffic."""
    (endpoint,) = service.endpoints.values()
    names = [each.display_name for each in endpoint.deployed_models]
    assert len(set(names)) == len(names), names
    return {
        each.display_name.removeprefix("mlops-v").partition("-")[0]: endpoint.traffic_split.get(each.id, 0)
        for each in endpoint.deployed_models
    }


def kinds(line: Line) -> list[str]:
    return [entry.kind for entry in line.ledger.entries()]


def test_a_canary_from_the_gate_to_all_of_the_traffic(served: Line, vertex_models: VertexModels) -> None:
    assert served.carry("2024-02", "validate_serving").verdict.status == "ok"
    rules: dict[str, Any] = {"bake": "1s", "min_requests": 20, "share": 30}
    held = served.carry("2024-02", "trial", **rules)
    assert held.verdict.status == "held"
    assert standing(vertex_models) == {"1": 70, "2": 30}
    assert mirrored(vertex_models)["2"] == {"challenger"}
    with traffic(vertex_models, toy.rows("2024-03", 2)) as said:
        outcome = until(lambda: (found := served.carry("2024-02", "trial", **rules)).verdict.status == "ok" and found)
        assert "it has stood" in outcome.verdict.reasons[0], outcome.verdict.reasons
        served.carry("2024-02", "promote")
        assert standing(vertex_models) == {"1": 70, "2": 30}
        deployed = served.carry("2024-02", "deploy")
    assert deployed.verdict.status == "ok" and "served by 1 of 1" in deployed.verdict.reasons[0]
    assert set(said) == {200}
    assert standing(vertex_models) == {"2": 100}
    assert mirrored(vertex_models) == {"1": {"previous"}, "2": {"champion", "default"}}
    assert kinds(served) == ["promotion", "trial", "promotion", "deployment"]
    # Everything once more: nothing is asked for but what is.
    vertex_models.asked.clear()
    served.follow()
    assert {each.method for each in vertex_models.asked} == {"GET"}


def test_a_broken_canary_is_withdrawn_and_the_champion_gets_everything(
    served: Line, vertex_models: VertexModels
) -> None:
    rules: dict[str, Any] = {"bake": "1s", "min_requests": 20, "share": 50}
    table = toy.rows("2024-03", 1).drop_columns(["region"]).append_column("region", pa.array(["mars"]))
    served.carry("2024-03", "trial", **rules)
    assert standing(vertex_models) == {"1": 50, "3": 50}
    with traffic(vertex_models, table), pytest.raises(TrialFailedError, match="requests failed"):
        until(lambda: served.carry("2024-03", "trial", **rules).verdict.status == "ok")
    assert standing(vertex_models) == {"1": 100}
    assert mirrored(vertex_models) == {"1": {"champion", "default"}, "3": set()}
    assert kinds(served) == ["promotion", "trial", "withdrawal"]


def test_a_rollback_moves_the_traffic_and_the_aliases(served: Line, vertex_models: VertexModels) -> None:
    promote(served.world, "2", "second")
    served.follow()
    # Nobody has seen the second one serve yet, so the first is kept to fall back on.
    assert standing(vertex_models) == {"1": 0, "2": 100}
    # As the shell asks it: where it is served is known from the store and the ledger.
    served.ledger.record(
        "deployment", version="2", champion_before="2", reasons=("seen",), run="second", target="vertex"
    )
    served.follow()
    assert standing(vertex_models) == {"2": 100}
    call = Call(
        pipeline=served.world.registry.model,
        stage="rollback",
        run="back",
        params={"reason": "prices"},
        store=served.world.store,
        registry=served.world.registry,
    )
    outcome = run(call)
    assert outcome.verdict.status == "ok", outcome.verdict.reasons
    assert standing(vertex_models) == {"1": 100}
    assert mirrored(vertex_models) == {"1": {"champion", "default"}, "2": set()}
    assert kinds(served)[-2:] == ["rollback", "deployment"]


def test_a_version_that_does_not_come_up_gives_way_to_the_champion_before(
    served: Line, vertex_models: VertexModels
) -> None:
    served.carry("2024-02", "promote")
    vertex_models.fail_operation("deployModel", "Model server exited unexpectedly.", code=9)
    with pytest.raises(DeploymentError, match="exited unexpectedly.*version 1 was put back"):
        served.carry("2024-02", "deploy")
    assert standing(vertex_models) == {"1": 100}
    assert mirrored(vertex_models)["1"] == {"champion", "default"}
    assert kinds(served) == ["promotion", "promotion", "rollback"]


@pytest.mark.parametrize("after", range(1, 8))
def test_ended_after_any_request_a_retry_leads_to_the_same(
    after: int, line: Line, vertex_models: VertexModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.follow()
    promote(line.world, "2", "second")
    line.ledger.record("deployment", version="2", champion_before="2", reasons=("seen",), run="second", target="vertex")
    # Slow, so that what the one that was ended has begun still goes on.
    vertex_models.seconds = 0.3
    with monkeypatch.context() as patch:
        killer = Killer(patch, after)
        with suppress(Killed):
            line.follow()
    # Upload, deploy, split, undeploy, and the aliases of two versions.
    assert killer.killed == (after <= 6)
    line.follow()
    assert standing(vertex_models) == {"2": 100}
    assert mirrored(vertex_models) == {"1": {"previous"}, "2": {"champion", "default"}}


@pytest.mark.parametrize("how", ["lost", "UNAVAILABLE", "RESOURCE_EXHAUSTED"])
def test_what_passes_by_itself_is_not_noticed(how: str, line: Line, vertex_models: VertexModels) -> None:
    for path in ("/endpoints$", "deployModel"):
        if how == "lost":
            vertex_models.lose_answer(method="POST", path=path)
        else:
            vertex_models.fail(how, path=path)
    line.follow()
    assert standing(vertex_models) == {"1": 100}


def test_a_deleted_endpoint_is_made_again(served: Line, vertex_models: VertexModels) -> None:
    vertex_models.endpoints.clear()
    target = deployment_of("vertex", {"google": served.google})
    assert target.live(served.world.registry, Store(served.world.store)) == []
    served.follow()
    assert standing(vertex_models) == {"1": 100}


def test_somebody_else_on_the_endpoint_is_left_alone_and_gets_no_traffic(
    served: Line, vertex_models: VertexModels
) -> None:
    (endpoint,) = vertex_models.endpoints.values()
    copy = type(endpoint.deployed_models[0])(endpoint.deployed_models[0])
    copy.id, copy.display_name = "1", "by hand"
    endpoint.deployed_models = [*endpoint.deployed_models, copy]
    served.follow()
    assert "by hand" in {each.display_name for each in endpoint.deployed_models}


def test_who_may_not_is_told_the_permission_and_the_role(line: Line, vertex_models: VertexModels) -> None:
    words = "Permission 'aiplatform.endpoints.create' denied on resource '//aiplatform.googleapis.com/projects/p'"
    vertex_models.fail("PERMISSION_DENIED", words, method="POST", path="/endpoints$")
    with pytest.raises(CloudAccessError, match=r"aiplatform\.endpoints\.create.*roles/aiplatform\.user"):
        line.follow()


def test_a_machine_that_does_not_exist_is_named(line: Line, vertex_models: VertexModels) -> None:
    line.google = Google.model_validate(
        {**line.google.model_dump(mode="json"), "stages": {"deploy": {"machine_type": "n9-huge-1"}}}
    )
    with pytest.raises(Exception, match="n9-huge-1.* is not supported"):
        line.follow()


def test_a_look_at_a_trial_is_three_light_requests(served: Line, vertex_models: VertexModels) -> None:
    served.carry("2024-02", "trial", bake="1s", min_requests=20, share=50)
    target = deployment_of("vertex", {"google": served.google})
    vertex_models.asked.clear()
    (server,) = target.live(served.world.registry, Store(served.world.store))
    assert [each.path.rpartition("/")[2] for each in vertex_models.asked] == [
        resource_id(served.world.registry.model),
        "timeSeries",
        "timeSeries",
    ]
    assert (server.champion, server.candidate, server.share) == ("1", "2", 50)


def test_a_shadow_is_refused_with_what_can_be_had_instead(served: Line) -> None:
    with pytest.raises(DeploymentError, match="no candidate can stand in the shadow.*canary"):
        served.carry("2024-02", "trial", share=0)
    declaration = served.trained.declared(
        deploy={"target": "vertex", "strategy": "shadow"},
        google=served.google.model_dump(mode="json", exclude_none=True),
    )
    (problem,) = problems_of(declaration)
    assert "no candidate can stand in the shadow" in problem and "canary" in problem


def test_vertex_s_own_form_is_understood_with_probabilities_where_they_are_asked_for(
    served: Line, vertex_models: VertexModels
) -> None:
    import requests

    (name,) = vertex_models.endpoints
    url = f"{vertex_models.url}/v1/projects/p/locations/r/endpoints/{name}:predict"
    row = {"amount": 1.0, "age": None, "region": "east", "member": True, "id": "a", "at": None}
    plain = requests.post(url, json={"instances": [row]}, timeout=60).json()
    assert plain["predictions"][0] in (0, 1)
    whole = requests.post(url, json={"instances": [row], "parameters": {"probabilities": True}}, timeout=60).json()
    (said,) = whole["predictions"]
    assert said["prediction"] == plain["predictions"][0] and sum(said["probabilities"].values()) == pytest.approx(1)
    wrong = requests.post(url, json={"instances": [row], "parameters": {"top": 3}}, timeout=60)
    assert wrong.status_code == 400 and "takes no such" in wrong.text
