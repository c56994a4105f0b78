"""Whether what serves follows the ledger."""

from __future__ import annotations

import time

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import RegistryRef
from airflow_mlops.deployments.base import Deployment
from airflow_mlops.registry.serving import Serving

_LOOK = 0.5


def await_followed(
    target: Deployment, registry: RegistryRef, store: Store, version: str, seconds: float
) -> list[Serving]:
    """What serves the model, once all of it answers with a version, or as it stands when the time is up."""
    until = time.monotonic() + seconds
    while True:
        servers = target.live(registry, store)
        if all(behind(each, version) is None for each in servers) or time.monotonic() > until:
            return servers
        time.sleep(_LOOK)


def behind(server: Serving, version: str) -> str | None:
    """Why a server does not serve a version alone; None where it does."""
    if server.champion == version and server.candidate is None:
        return None
    return server.problem or f"it still answers with version {server.champion or 'none'}"
