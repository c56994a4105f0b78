"""Whether MLflow says what the ledger says: every difference is told, and what may be mended is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airflow_mlops.call.dispatch import run
from airflow_mlops.registry import ModelRegistry
from airflow_mlops.registry.check import differences
from tests import toy
from tests.toy import World


@pytest.fixture
def registry(world: World) -> ModelRegistry:
    """Two promotions, and a version that is neither."""
    champion = None
    for name in "ab":
        version = toy.make_version(world, f"sha256:{name}", name)
        run(toy.make_promotion(world, version, champion, name))
        champion = version.uri.rpartition("/")[2]
    toy.make_version(world, "sha256:c", "c")
    return toy.registry_of(world.store, world.registry)


def test_a_registry_that_follows_its_ledger_has_no_difference(registry: ModelRegistry) -> None:
    assert differences(registry) == []


@pytest.mark.parametrize(
    ("alias", "version", "said"),
    [
        ("champion", "1", "the alias 'champion' names 1, and the ledger 2"),
        ("champion", None, "the alias 'champion' names no version, and the ledger 2"),
        ("previous", "3", "the alias 'previous' names 3, and the ledger 1"),
        ("challenger", "2", "the alias 'challenger' names version 2, which is the champion"),
    ],
)
def test_an_alias_that_somebody_moved_is_told_and_put_right(
    registry: ModelRegistry, alias: str, version: str | None, said: str
) -> None:
    registry.api.set_alias(registry.ref.model, alias, version)
    (found,) = differences(registry)
    assert (found.what, found.repairable) == (said, True) and "registry check" in found.fix
    registry.project()
    assert differences(registry) == []


def test_a_challenger_of_its_own_is_no_difference(registry: ModelRegistry) -> None:
    registry.set_challenger("3")
    assert differences(registry) == []


def test_a_version_that_is_another_model_now_is_told_and_not_repairable(registry: ModelRegistry) -> None:
    registry.api.tag_version(registry.ref.model, "2", {"mlops.model_digest": "sha256:forged"})
    (found,) = differences(registry)
    assert found.what == "version 2 is model sha256:forged in MLflow, and the ledger has sha256:b"
    assert not found.repairable and "rollback" in found.fix


def test_a_version_that_was_deleted_is_told(registry: ModelRegistry) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(registry.ref.uri, registry.ref.uri)
    client.delete_registered_model_alias(registry.ref.model, "previous")
    client.delete_model_version(registry.ref.model, "1")
    told = [(each.what, each.repairable) for each in differences(registry)]
    assert ("version 1 was promoted and is gone from MLflow", False) in told


def test_an_entry_that_was_written_over_is_told(world: World, registry: ModelRegistry) -> None:
    file = Path(world.store, "ledger", registry.ref.model, "00000002.json")
    entry = json.loads(file.read_text())
    file.write_text(json.dumps({**entry, "champion_before": "7"}))
    told = differences(toy.registry_of(world.store, world.registry))
    assert [each.what for each in told] == [
        "entry 2 of the ledger says champion 7 -> 2, and what came before it gives 1 -> 2"
    ]
