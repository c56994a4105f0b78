"""The seam between the ledger and what serves: a target is a value (``deploy: {target: local}``).

*The ledger decides, all else follows.* A target is never told which version to serve: it is told that the ledger has
moved, and asked what is being served. So whatever was missed, a lost request or a machine that was away, is made up for
by looking again. A further target is entered by an entry point of the group ``airflow_mlops.deployments`` that names a
class with the methods of `Deployment`; nothing here changes for it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import RegistryRef
from airflow_mlops.deployments.endpoint import Endpoint
from airflow_mlops.errors import DeploymentError
from airflow_mlops.registry.serving import Serving


class Deployment(Protocol):
    """What every target does."""

    def open(
        self,
        registry: RegistryRef,
        store: Store,
        version: str,
        digest: str,
        *,
        seconds: float,
        allow_pickle: bool = False,
    ) -> AbstractContextManager[Endpoint]:
        """Serve one version in a clean place of its own, for whoever asks inside the scope; nobody else is sent there.

        Args:
            registry: which model.
            store: the artifact store.
            version: the version.
            digest: what its model must be.
            seconds: how long it may take to come up.
            allow_pickle: whether a model that runs code when it is loaded may be.

        Raises:
            DeploymentError: when it does not come up; with what it said.
        """

    def follow(self, registry: RegistryRef, store: Store) -> None:
        """Have what serves do as the ledger says now; a target that looks by itself has nothing to do."""

    def connect(self, registry: RegistryRef, store: Store, server: Serving) -> Endpoint:
        """Whom to ask what one of these answers."""

    def live(self, registry: RegistryRef, store: Store) -> list[Serving]:
        """What serves the model now, and what it has answered. Cheap: a triggerer asks it again and again."""


@cache
def _known() -> dict[str, EntryPoint]:
    """What is installed; to look through all packages takes 20 ms, as long as many a task works."""
    return {entry.name: entry for entry in entry_points(group="airflow_mlops.deployments")}


def deployment_of(name: str, options: Mapping[str, Any] | None = None) -> Deployment:
    """The target of that name.

    Args:
        name: its name.
        options: what a target may be made with, such as the pipeline's section ``google``; it gets those that it takes.

    Raises:
        DeploymentError: when no entry point has that name, or it does not load.
    """
    known = _known()
    if name not in known:
        raise DeploymentError(f"there is no deployment target {name!r}", allowed=", ".join(sorted(known)))
    try:
        kind = known[name].load()
        takes = inspect.signature(kind).parameters
        target: Deployment = kind(**{key: value for key, value in (options or {}).items() if key in takes})
    except (ImportError, AttributeError, TypeError) as error:
        raise DeploymentError(f"the deployment target {name!r} cannot be made: {error}") from error
    return target
