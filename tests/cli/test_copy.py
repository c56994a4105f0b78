"""A champion goes to another environment: the same model, by digest, and no more than a candidate there."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest

from airflow_mlops.call import RegistryRef, Store
from airflow_mlops.cli.main import main
from airflow_mlops.registry import Ledger, ModelRegistry
from airflow_mlops.registry.check import differences
from airflow_mlops.registry.mlflow_api import pointed_at
from airflow_mlops.registry.models import MODEL_DIGEST_TAG
from tests import toy
from tests.toy import World


def copied(world: World, there: Path) -> list[str]:
    side = ["--to-store", str(there / "store"), "--to-registry", f"sqlite:///{there}/mlflow.db", "--by", "ann"]
    origin = ["--from-store", world.store, "--from-registry", world.registry.uri]
    return ["registry", "copy", world.registry.model, *origin, *side]


def test_a_champion_is_copied_judged_there_and_promoted_there(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = world.registry.model
    toy.months(tmp_path, ["2024-01", "2024-02"])
    declaration = toy.declare(tmp_path, name)
    toy.run_plan(declaration, "2024-01", "one", world.store, world.registry)
    here = toy.registry_of(world.store, world.registry)
    digest = here.need_champion().tags[MODEL_DIGEST_TAG]

    there = tmp_path / "prod"
    there.mkdir()
    # Another try changes nothing: the model is there.
    assert [main(copied(world, there)) for _ in range(2)] == [0, 0]
    assert digest in capsys.readouterr().out
    ref = RegistryRef(uri=f"sqlite:///{there}/mlflow.db", model=name, experiment=name)
    target = ModelRegistry(ref, Store(str(there / "store")))
    (entry,) = target.ledger.entries()
    assert (entry.kind, entry.model, entry.by, entry.champion_after) == ("arrival", digest, "ann", None)
    assert world.registry.uri in entry.reasons[0]
    assert target.api.version(name, "1").tags[MODEL_DIGEST_TAG] == digest
    assert target.api.aliases(name) == {"challenger": "1"}

    raw = toy.rows("2024-02", 20).to_pandas()
    answers = []
    for uri, alias in ((world.registry.uri, "champion"), (ref.uri, "challenger")):
        with pointed_at(uri):
            answers.append(mlflow.pyfunc.load_model(f"models:/{name}@{alias}").predict(raw).tolist())
    assert answers[0] == answers[1]

    monkeypatch.chdir(there)
    where = ["--store", str(there / "store"), "--registry", ref.uri]
    assert main(["run", str(tmp_path / f"{name}.yaml"), "--window", "2024-02", "--model", "1", *where]) == 0
    assert Ledger(Store(str(there / "store")), name).champion() == "1"
    assert differences(target) == []
    assert len(target.api.versions_tagged(name, MODEL_DIGEST_TAG, digest)) == 1


def test_a_champion_whose_model_was_changed_is_not_copied(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy.months(tmp_path, ["2024-01"])
    toy.run_plan(toy.declare(tmp_path, world.registry.model), "2024-01", "one", world.store, world.registry)
    registry = toy.registry_of(world.store, world.registry)
    champion = registry.need_champion()
    registry.api.tag_version(champion.model, champion.version, {MODEL_DIGEST_TAG: "sha256:other"})
    there = tmp_path / "prod"
    there.mkdir()
    assert main(copied(world, there)) == 1
    assert "is not the model that was promoted" in capsys.readouterr().err
    assert list(there.rglob("*.json")) == []
