"""What the servers of a model say of themselves: heartbeats in the store, which deployments read."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import ArtifactRef

ALIVE = timedelta(seconds=15)
"""A heartbeat older than this is of a server that is no more, or that nobody should count on."""
_FOLDER = "serving"


class Served(BaseModel):
    """What one version has answered since a server loaded it."""

    model_config = ConfigDict(frozen=True)

    requests: int = 0
    """Answered requests, those that failed among them; a request that was the client's mistake is none."""
    errors: int = 0
    """Requests that the model or its process failed on."""
    p50: float | None = None
    """The median time of an answer, in milliseconds, over the last 2,000 requests."""
    p99: float | None = None
    """The time that one answer in a hundred takes longer than, in milliseconds, over the last 2,000 requests."""
    compared: int = 0
    """Rows that it was asked in the shadow of the champion."""
    disagreements: int = 0
    """Those among them that it answered otherwise."""


class Serving(BaseModel):
    """One server."""

    model_config = ConfigDict(frozen=True)

    server: str
    """Its id."""
    url: str
    """Where it answers."""
    pid: int
    """Its process, on its own machine."""
    started: datetime
    """When it began, in UTC."""
    at: datetime
    """When it wrote this, in UTC."""
    entry: int = 0
    """The entry of the ledger that it follows."""
    champion: str | None = None
    """The version that answers."""
    candidate: str | None = None
    """The version on trial."""
    share: int = 0
    """How many of a hundred requests the candidate answers; 0: it is only compared."""
    state: Literal["ok", "degraded"] = "ok"
    """``degraded``: it answers, and something is wrong."""
    problem: str | None = None
    """What is wrong."""
    versions: dict[str, Served] = {}
    """What each loaded version has answered."""
    logged: int = 0
    """Rows of predictions that are in the store."""
    queued: int = 0
    """Rows that are not yet."""
    dropped: int = 0
    """Rows that are lost, because the store was too slow or not there."""


def beat(store: Store, model: str, serving: Serving) -> None:
    """Write a heartbeat, over the server's last one."""
    with store.scratch(".json") as file:
        file.write_text(serving.model_dump_json(), encoding="utf-8")
        store.replace_file(file, _FOLDER, model, f"{serving.server}.json")


def end(store: Store, model: str, server: str) -> None:
    """Take a server's heartbeat away."""
    store.discard(ArtifactRef(uri=store.uri(_FOLDER, model, f"{server}.json"), digest="", kind="heartbeat"))


def live(store: Store, model: str) -> list[Serving]:
    """The servers of a model that are there now, by their ids."""
    found = []
    for name in store.names(_FOLDER, model):
        value = store.read_json(_FOLDER, model, name) if name.endswith(".json") else None
        with suppress(ValidationError):  # of another version of this package: it is not one that we can follow
            serving = Serving.model_validate(value)
            if datetime.now(UTC) - serving.at < ALIVE:
                found.append(serving)
    return found
