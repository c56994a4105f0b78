"""Versions, promotions and what stands on Google Cloud, for the tests of models and endpoints."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from airflow_mlops.call import ArtifactRef, Store
from airflow_mlops.google.rest import Rest
from airflow_mlops.registry import ModelRegistry
from airflow_mlops.spec.google import Google
from tests import toy
from tests.loopback.gcs import PROJECT
from tests.loopback.vertex_models import REGION, VertexModels
from tests.serving.client import payload
from tests.toy import World

IMAGE = "europe-docker.pkg.dev/p/mlops/stage@sha256:0123"


def section(bucket: str, **more: Any) -> Google:
    """The section of a declaration."""
    return Google(project=PROJECT, region=REGION, bucket=bucket.removeprefix("gs://"), image=IMAGE, **more)


def version_with_files(world: World, digest: str, run: str) -> ArtifactRef:
    """A version whose model is a few files that nothing loads."""
    from mlflow import MlflowClient

    version = toy.make_version(world, digest, run)
    registry = toy.registry_of(world.store, world.registry)
    found = registry.api.version(world.registry.model, version.uri.rpartition("/")[2])
    client = MlflowClient(world.registry.uri, world.registry.uri)
    folder = world.folder / run
    (folder / "code").mkdir(parents=True)
    (folder / "model.skops").write_text(digest)
    (folder / "code" / "own.py").write_text("")
    client.log_model_artifacts(found.source.removeprefix("models:/"), str(folder))
    registry.api.log_text(found.run_id, "mlops/model.json", "{}")
    return version


def promote(world: World, version: str, run: str) -> ModelRegistry:
    """Write a promotion, as the stage would; nothing follows yet."""
    registry = toy.registry_of(world.store, world.registry)
    digest = registry.api.version(world.registry.model, version).tags["mlops.model_digest"]
    registry.ledger.record(
        "promotion",
        version=version,
        champion_before=registry.ledger.champion(),
        model=digest,
        reasons=("by a test",),
        run=run,
    )
    registry.project()
    return registry


def mirrored(service: VertexModels) -> dict[str, set[str]]:
    """MLflow's versions in the Vertex AI Model Registry, with their aliases; each is there once."""
    (versions,) = service.models.values()
    said = [each.labels["mlops_version"] for each in versions]
    assert len(set(said)) == len(said), said
    return {each.labels["mlops_version"]: set(each.version_aliases) for each in versions}


def store_of(world: World) -> Store:
    return Store(world.store)


class Killed(BaseException):
    """The process ends here."""


class Killer:
    """Ends the process after so many requests that change something."""

    def __init__(self, monkeypatch: Any, after: int) -> None:
        self.left, self.killed = after, False
        send = Rest.send

        def counted(rest: Rest, method: str, path: str, **options: Any) -> Any:
            found = send(rest, method, path, **options)
            if method != "GET":
                self.left -= 1
                if self.left == 0:
                    self.killed = True
                    raise Killed
            return found

        monkeypatch.setattr(Rest, "send", counted)


def files_in(bucket: str) -> set[str]:
    """What lies in a bucket, below the models' folders."""
    store = Store(f"{bucket}/mlops")
    store.fs.invalidate_cache()
    return {Path(name).name for name in store.fs.find(store.path)}


@contextmanager
def traffic(service: VertexModels, table: pa.Table) -> Iterator[list[int]]:
    """Clients that ask and ask through the endpoint; the statuses so far."""
    import requests

    (name,) = service.endpoints
    url = f"{service.url}/v1/projects/p/locations/r/endpoints/{name}:rawPredict"
    said: list[int] = []
    over, body = threading.Event(), payload(table)

    def go() -> None:
        while not over.is_set():
            said.append(requests.post(url, data=body, timeout=60).status_code)
            over.wait(0.02)

    thread = threading.Thread(target=go)
    thread.start()
    try:
        yield said
    finally:
        over.set()
        thread.join()
