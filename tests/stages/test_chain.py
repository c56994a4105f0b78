"""The whole way without a server, on a database in one file: what a laptop runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import toy
from tests.toy import World


def test_train_retrain_monitor_and_predict_without_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    world = World(tmp_path, str(tmp_path / "store"), toy.registry_ref(f"sqlite:///{tmp_path}/mlflow.db", "toy"))
    toy.months(tmp_path, ["2024-01", "2024-02"], 1500)
    weak = toy.declare(tmp_path, data={"drop": ["amount"]})
    first = toy.run_plan(weak, "2024-01", "first", world.store, world.registry)
    assert first["promote"].info["version"] == "1" and "mlflow_url" not in first["promote"].info
    second = toy.run_plan(toy.declare(tmp_path), "2024-02", "second", world.store, world.registry)
    assert second["promote"].info["champion_before"] == "1"
    state = toy.state_of(world)
    assert state["aliases"] == {"champion": "2", "previous": "1"}
    assert [version.version for version in state["versions"]] == ["1", "2"]
    assert toy.run_monitor(toy.declare(tmp_path), "2024-02", "m", world.store, world.registry).verdict.status == "ok"
    predicted = toy.run_predict(toy.declare(tmp_path), "2024-02", "p", world.store, world.registry)
    assert predicted["batch_predict"].info == {"champion": "2"}
    # Nothing of MLflow's lands in the folder that the process happens to run in.
    assert (tmp_path / "mlflow-artifacts").is_dir() and list(elsewhere.iterdir()) == []
