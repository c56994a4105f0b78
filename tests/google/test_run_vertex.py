"""``airflow-mlops run FILE --env prod`` where prod says ``backend: vertex``, and the commands that look there after."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from airflow_mlops.backends.google import VertexBackend
from airflow_mlops.call import Store
from airflow_mlops.cli import carry
from airflow_mlops.cli.main import main
from airflow_mlops.registry import Ledger, Requests
from tests import toy
from tests.google.test_vertex import GOOGLE
from tests.toy import World


@pytest.fixture
def prod(world: World, vertex: Any, gcs: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A pipeline that is on files here, and on Vertex AI in ``prod``; its file."""
    toy.months(world.folder, ("2024-01",))
    google = {**GOOGLE, "bucket": gcs.removeprefix("gs://")}
    environments = {"prod": {"backend": "vertex", "google": google}}
    toy.declare(world.folder, world.registry.model, retries=0)
    file = world.folder / f"{world.registry.model}.yaml"
    body = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**body, "environments": environments}, sort_keys=False))
    monkeypatch.chdir(world.folder)
    monkeypatch.setattr(carry, "_LOOK_SECONDS", 0.2)
    return str(file)


def stages(vertex: Any) -> list[str]:
    return [job.labels["mlops_stage"] for job in vertex.jobs.values()]


def test_the_run_is_carried_to_vertex_ai_and_its_model_is_found_in_the_declared_bucket(
    prod: str, world: World, vertex: Any, gcs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    vertex.fail("UNAVAILABLE", times=4, method="GET", path="customJobs/")
    assert main(["run", prod, "--env", "prod", "--registry", world.registry.uri, "--json"]) == 0
    told = capsys.readouterr()
    said = json.loads(told.out)
    assert said["status"] == "promoted" and stages(vertex) == ["prepare", "train", "evaluate"]
    assert "runs as https://console.cloud.google.com/vertex-ai/" in told.err
    assert not Path(".airflow-mlops").exists(), "nothing is left on this machine"
    store = Store(f"{gcs}/mlops")
    assert store.names("jobs") == []

    # Nothing is done twice: a second run makes no job.
    assert main(["run", prod, "--env", "prod", "--registry", world.registry.uri]) == 0
    assert len(vertex.jobs) == 3
    capsys.readouterr()

    name, here = world.registry.model, ("--declaration", prod, "--env", "prod")
    assert main(["history", name, *here]) == 0
    assert "promotion  version 1: champion none -> 1" in capsys.readouterr().out
    assert main(["requests", name, *here]) == 0
    assert f"nothing has asked to retrain {name}" in capsys.readouterr().out
    # No Model Registry of Vertex AI is there, so the mirror, which the bucket's store names, is behind the ledger.
    assert main(["registry", "check", *here, "--registry", world.registry.uri]) == 1
    assert f"{name}: version 1 (champion) is not in the Vertex AI Model Registry" in capsys.readouterr().out
    assert main(["rollback", name, *here, "--registry", world.registry.uri, "--reason", "prices"]) == 1
    assert "has no champion before 1 to go back to" in capsys.readouterr().err
    assert main(["cache", "explain", prod, "--env", "prod", "--registry", world.registry.uri]) == 0
    assert f"store {gcs}/mlops" in capsys.readouterr().out

    # Where a command is not told, it says how to tell it.
    assert main(["history", name, "--store", world.store]) == 1
    assert "--declaration PIPELINE.yaml [--env NAME]" in capsys.readouterr().err
    assert main(["requests", name, "--store", world.store]) == 1
    assert "--declaration PIPELINE.yaml [--env NAME]" in capsys.readouterr().err
    assert main(["history", f"{name}x", *here]) == 1
    assert f"has no pipeline '{name}x'" in capsys.readouterr().err


def test_a_registry_on_this_machine_is_refused_before_anything_runs(
    prod: str, vertex: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", prod, "--env", "prod"]) == 1
    said = capsys.readouterr().err
    assert "a job on Vertex AI cannot reach the registry sqlite:///" in said and "MLFLOW_TRACKING_URI" in said
    assert stages(vertex) == [] and "extract" not in said


def test_the_way_on_keeps_the_environment(
    prod: str, world: World, vertex: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    vertex.fail("PERMISSION_DENIED", "no", method="POST", path="customJobs$")
    assert main(["run", prod, "--env", "prod", "--registry", world.registry.uri]) == 1
    said = capsys.readouterr().err
    again = shlex.split(said.rstrip().splitlines()[-1])
    assert again[again.index("--env") + 1] == "prod" and "--resume" in again


def test_who_interrupts_the_wait_ends_the_job_and_a_resumed_run_makes_another(
    prod: str, world: World, vertex: Any, gcs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vertex.machines.clear()
    look = VertexBackend.status

    def interrupted(self: VertexBackend, handle: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(VertexBackend, "status", interrupted)
    assert main(["run", prod, "--env", "prod", "--registry", world.registry.uri]) == 130
    (job,) = vertex.jobs.values()
    assert job.state.name in ("JOB_STATE_CANCELLING", "JOB_STATE_CANCELLED")
    monkeypatch.setattr(VertexBackend, "status", look)
    vertex.machines.set()
    assert main(["run", prod, "--env", "prod", "--registry", world.registry.uri]) == 0
    assert stages(vertex) == ["prepare", "prepare", "train", "evaluate"]
    name = world.registry.model
    assert Ledger(Store(f"{gcs}/mlops"), name).champion() == "1" and Requests(Store(f"{gcs}/mlops"), name).all() == []
