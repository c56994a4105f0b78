"""Batch prediction by a job of Vertex AI: the very partition that the stage makes, and one job whatever happens."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_mlops.call import Outcome
from airflow_mlops.call.dispatch import run
from airflow_mlops.errors import CloudError, CodeError
from airflow_mlops.spec.google import Google
from airflow_mlops.spec.plan import predict_plan
from tests import toy
from tests.google.made import Killed, Killer, section
from tests.loopback.vertex_models import VertexModels
from tests.stages.test_deployment import FAILS
from tests.toy import World


@pytest.fixture(scope="module")
def trained(mlflow_server: str, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A champion that fails on rows from Mars, of which April is full."""
    folder = tmp_path_factory.mktemp("batch")
    world = World(folder, str(folder / "store"), toy.registry_ref(mlflow_server, f"batch-{folder.name}"))
    toy.months(folder, ["2024-01", "2024-02"])
    mars = pa.array(["mars"] * 50)
    toy.write(
        toy.rows("2024-04", 50).drop_columns(["region"]).append_column("region", mars), folder / "data/2024-04.parquet"
    )
    toy.package(folder, "own", FAILS)
    toy.run_plan(declared(world), "2024-01", "2024-01", world.store, world.registry)
    return world


def declared(world: World, **more: Any) -> Any:
    return toy.declare(world.folder, world.registry.model, prepare={"features": "own.features:build"}, **more)


def predict(world: World, month: str, folder: Path, run_id: str, google: Google | None = None) -> Outcome:
    more: dict[str, Any] = {"predict": {"output": str(folder)}}
    if google:
        more = {
            "predict": {"output": str(folder), "job": "vertex"},
            "google": google.model_dump(mode="json", exclude_none=True),
        }
    declaration = declared(world, **more)
    outcomes: dict[str, Outcome] = {}
    for node in predict_plan(declaration.pipeline):
        call = toy.call_of(declaration, node, outcomes, month, run_id, world.store, world.registry)
        outcomes[node.stage] = run(call)
    return outcomes["batch_predict"]


def partition(folder: Path, month: str) -> pa.Table:
    return pq.read_table(folder / f"window={month}" / "predictions.parquet")


def test_a_job_writes_the_very_partition_of_the_stage_once(
    trained: World, tmp_path: Path, gcs: str, vertex_models: VertexModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    google = section(gcs)
    predict(trained, "2024-02", tmp_path / "stage", "r")
    # Ended right after the job was submitted, while it runs.
    vertex_models.seconds = 0.5
    with monkeypatch.context() as patch, suppress(Killed):
        Killer(patch, 2)
        predict(trained, "2024-02", tmp_path / "job", "r", google)
    outcome = predict(trained, "2024-02", tmp_path / "job", "r", google)
    assert len(vertex_models.jobs) == 1
    own, other = partition(tmp_path / "stage", "2024-02"), partition(tmp_path / "job", "2024-02")
    assert other.schema == own.schema and other.num_rows == 400
    assert other.equals(own)
    assert outcome.outputs["predictions"].rows == 400
    # The stage once more gets what the job has said already.
    predict(trained, "2024-02", tmp_path / "job", "r", google)
    assert len(vertex_models.jobs) == 1


def test_rows_that_the_model_fails_on_are_told_and_write_nothing(
    trained: World, tmp_path: Path, gcs: str, vertex_models: VertexModels
) -> None:
    with pytest.raises(CodeError, match="has 0 answers for 50 rows; the first error: .*no such planet"):
        predict(trained, "2024-04", tmp_path / "job", "m", section(gcs))
    assert not (tmp_path / "job").exists()


def test_a_job_that_failed_is_said_and_a_retry_submits_another(
    trained: World, tmp_path: Path, gcs: str, vertex_models: VertexModels
) -> None:
    google = section(gcs)
    good, vertex_models.container = vertex_models.container, _out_of_memory  # type: ignore[method-assign]
    try:
        with pytest.raises(CloudError, match="has not succeeded: Out of memory"):
            predict(trained, "2024-02", tmp_path / "job", "f", google)
    finally:
        vertex_models.container = good  # type: ignore[method-assign]
    assert predict(trained, "2024-02", tmp_path / "job", "f", google).metrics["rows"] == 400
    assert len(vertex_models.jobs) == 2


def _out_of_memory(model: Any) -> Any:
    raise RuntimeError("Out of memory")
