"""The Vertex AI Model Registry follows the ledger: once, again after anything, and as the check tells."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest

from airflow_mlops.call.dispatch import run
from airflow_mlops.cli import main
from airflow_mlops.errors import CloudAccessError, StoreError
from airflow_mlops.google.names import resource_id
from airflow_mlops.registry import ModelRegistry
from airflow_mlops.registry.check import differences, repair
from airflow_mlops.registry.mirror import Mirror, let_follow, mirror_of
from airflow_mlops.spec.google import Google
from tests import toy
from tests.google.made import Killed, Killer, files_in, mirrored, promote, section, store_of, version_with_files
from tests.loopback.vertex_models import VertexModels
from tests.toy import World


@pytest.fixture
def google(gcs: str) -> Google:
    return section(gcs)


@pytest.fixture
def registry(world: World) -> ModelRegistry:
    """Three versions, of which the first two were promoted."""
    for name in "abc":
        version_with_files(world, f"sha256:{name * 64}", name)
    promote(world, "1", "a")
    return promote(world, "2", "b")


@pytest.fixture
def mirror(world: World, registry: ModelRegistry, google: Google, vertex_models: VertexModels) -> Mirror:
    """Their mirror, which follows."""
    found = mirror_of(registry, store_of(world), google)
    assert found is not None
    found.project()
    return found


def test_what_was_promoted_is_there_with_its_files_labels_aliases_and_container(
    mirror: Mirror, vertex_models: VertexModels, gcs: str, world: World
) -> None:
    assert mirrored(vertex_models) == {"2": {"champion", "default"}, "1": {"previous"}}
    (name, versions), *_ = vertex_models.models.items()
    champion = next(each for each in versions if "champion" in each.version_aliases)
    assert name == resource_id(world.registry.model)
    assert dict(champion.labels) == {
        "mlops_pipeline": world.registry.model,
        "mlops_version": "2",
        "mlops_digest": "b" * 32,
    }
    assert champion.artifact_uri == f"{gcs}/mlops/models/{'b' * 64}"
    assert files_in(gcs) == {"model.skops", "own.py", "model.json"}
    spec = champion.container_spec
    assert (spec.predict_route, spec.health_route) == ("/invocations", "/ping")
    assert list(spec.args)[:6] == ["serve", world.registry.model, "--version", "2", "--digest", f"sha256:{'b' * 64}"]
    # Looked at once more, nothing is asked for but what it is.
    vertex_models.asked.clear()
    mirror.project()
    assert {each.method for each in vertex_models.asked} == {"GET"}


def test_a_rollback_moves_the_aliases_and_uploads_nothing(
    mirror: Mirror, vertex_models: VertexModels, registry: ModelRegistry, world: World, google: Google
) -> None:
    vertex_models.asked.clear()
    registry.roll_back(reason="wrong", run="back")
    assert let_follow(registry, store_of(world)) is None
    assert mirrored(vertex_models) == {"1": {"champion", "default"}, "2": set()}
    assert not vertex_models.requests("POST", "upload")


@pytest.mark.parametrize("after", [1, 2, 3, 4, 5, 6])
def test_ended_after_any_request_the_next_look_goes_on_and_nothing_is_there_twice(
    after: int,
    registry: ModelRegistry,
    world: World,
    google: Google,
    vertex_models: VertexModels,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Slow, so that the upload of the one that was ended still goes on.
    vertex_models.seconds = 0.3
    with monkeypatch.context() as patch:
        killer = Killer(patch, after)
        with suppress(Killed):
            let_follow(registry, store_of(world), google)
        assert killer.killed == (after <= 4), "an upload and an alias each"
    assert let_follow(registry, store_of(world), google) is None
    assert mirrored(vertex_models) == {"2": {"champion", "default"}, "1": {"previous"}}


@pytest.mark.parametrize("path", ["upload", "mergeVersionAliases"])
@pytest.mark.parametrize("how", ["lost", "UNAVAILABLE", "RESOURCE_EXHAUSTED"])
def test_what_passes_by_itself_is_not_noticed(
    how: str, path: str, registry: ModelRegistry, world: World, google: Google, vertex_models: VertexModels
) -> None:
    if how == "lost":
        vertex_models.lose_answer(path=path)
    else:
        vertex_models.fail(how, path=path)
    assert let_follow(registry, store_of(world), google) is None
    assert mirrored(vertex_models) == {"2": {"champion", "default"}, "1": {"previous"}}


def test_a_promotion_stands_while_vertex_ai_is_down_and_whoever_looks_next_makes_it_up(
    world: World, google: Google, vertex_models: VertexModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_mlops.google.operations._TRIES", 1)
    monkeypatch.setattr("airflow_mlops.google.rest._TRIES", 1)
    version = version_with_files(world, "sha256:" + "d" * 64, "d")
    call = toy.make_promotion(world, version, None, "d")
    vertex_models.fail("UNAVAILABLE", "The service is currently unavailable.", times=99)
    outcome = run(call.model_copy(update={"params": {**call.params, "google": google.model_dump(mode="json")}}))
    assert outcome.verdict.status == "warn" and outcome.verdict.passed
    assert "the Vertex AI Model Registry does not follow" in outcome.verdict.reasons[1]
    registry = toy.registry_of(world.store, world.registry)
    assert registry.ledger.champion() == "1" and registry.api.aliases(world.registry.model)["champion"] == "1"
    vertex_models.forget()
    # Where it is mirrored is known from the store.
    assert let_follow(registry, store_of(world)) is None
    assert mirrored(vertex_models) == {"1": {"champion", "default"}}


def break_alias(service: VertexModels) -> None:
    (versions,) = service.models.values()
    for each in versions:
        each.version_aliases = {"1": ["champion", "default"], "2": ["challenger"]}[each.labels["mlops_version"]]


def break_labels(service: VertexModels) -> None:
    (versions,) = service.models.values()
    versions[0].labels = {"team": "own"}


def break_digest(service: VertexModels) -> None:
    (versions,) = service.models.values()
    versions[0].labels = {**versions[0].labels, "mlops_digest": "0" * 32}


def break_all(service: VertexModels) -> None:
    service.models.clear()


@pytest.mark.parametrize(
    ("deed", "said", "left"),
    [
        (break_alias, ["'champion' names version 1, and the ledger 2", "'challenger' names version 2"], 0),
        (break_labels, ["version 2 has lost its labels"], 0),
        (break_digest, ["version 2 (champion) is not in", "says that it is version 2, and is another model"], 1),
        (break_all, ["version 2 (champion) is not in", "version 1 (previous) is not in"], 0),
    ],
    ids=["alias", "labels", "digest", "gone"],
)
def test_the_check_tells_what_differs_and_mends_it(
    deed: Any,
    said: list[str],
    left: int,
    mirror: Mirror,
    registry: ModelRegistry,
    vertex_models: VertexModels,
    world: World,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert differences(registry, mirror) == []
    deed(vertex_models)
    found = [each.what for each in differences(registry, mirror)]
    assert all(any(part in each for each in found) for part in said), found
    options = ["registry", "check", world.registry.model, "--store", world.store, "--registry", world.registry.uri]
    assert main([*options, "--repair", "--json"]) == (1 if left else 0)
    told = json.loads(capsys.readouterr().out)[world.registry.model]
    assert len(told["differences"]) == left and told["repaired"]
    (versions,) = vertex_models.models.values()
    champion = next(each for each in versions if "champion" in each.version_aliases)
    assert (champion.labels["mlops_version"], champion.labels["mlops_digest"]) == ("2", "b" * 32)
    if not left:
        assert mirrored(vertex_models) == {"2": {"champion", "default"}, "1": {"previous"}}
    if deed is break_labels:
        assert versions[0].labels["team"] == "own"


def test_who_may_not_is_told_the_permission_and_the_role(
    mirror: Mirror, vertex_models: VertexModels, registry: ModelRegistry, google: Google
) -> None:
    words = "Permission 'aiplatform.models.list' denied on resource '//aiplatform.googleapis.com/projects/p'"
    vertex_models.fail("PERMISSION_DENIED", words)
    with pytest.raises(CloudAccessError, match=r"aiplatform\.models\.list.*roles/aiplatform\.user"):
        mirror.project()


def test_a_store_that_vertex_ai_cannot_read_is_refused(
    registry: ModelRegistry, world: World, google: Google, vertex_models: VertexModels
) -> None:
    elsewhere = google.model_copy(update={"bucket": None})
    with pytest.raises(StoreError, match=r"Vertex AI reads models from gs:// only.*google: \{bucket: NAME\}"):
        Mirror(registry, store_of(world), elsewhere).project()


def test_an_upload_that_fails_is_said(
    registry: ModelRegistry, world: World, google: Google, vertex_models: VertexModels
) -> None:
    vertex_models.fail_operation("upload", "Image europe-docker.pkg.dev/p/mlops/stage not found.", code=9)
    said = let_follow(registry, store_of(world), google)
    assert said is not None and "the upload of version 2 failed: Image" in said
    assert let_follow(registry, store_of(world), google) is None


def test_without_an_image_nothing_is_mirrored(
    registry: ModelRegistry, world: World, google: Google, vertex_models: VertexModels
) -> None:
    assert let_follow(registry, store_of(world), google.model_copy(update={"image": None})) is None
    assert let_follow(registry, store_of(world)) is None
    assert not vertex_models.asked


@pytest.mark.parametrize(
    ("name", "made"),
    [("churn", "mlops-churn"), ("Churn_EU", "mlops-churn-eu-"), ("x" * 100, "mlops-" + "x" * 48 + "-")],
)
def test_every_pipeline_has_an_id_of_its_own_that_google_takes(name: str, made: str) -> None:
    found = resource_id(name)
    assert found.startswith(made) and len(found) <= 63
    assert resource_id("churn-eu") != resource_id("churn_eu") != resource_id("Churn-eu")


def test_repair_without_a_mirror_is_as_before(registry: ModelRegistry) -> None:
    registry.api.set_alias(registry.ref.model, "champion", "1")
    repair(registry)
    assert differences(registry) == []
