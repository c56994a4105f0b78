"""Waits until a trial has stood long enough, or a rule is broken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import RegistryRef
from airflow_mlops.deployments import deployment_of
from airflow_mlops.errors import MlopsError
from airflow_mlops.hooks.google import google_credentials
from airflow_mlops.registry.trial import Standing, standing
from airflow_mlops.spec.stages import Trial


class TrialTrigger(BaseTrigger):
    """Fires once, when a trial is no longer baking. It reads heartbeats only; the worker says what follows.

    :param store: the artifact store's root.
    :param registry: the registry of the model, as JSON.
    :param params: the trial's rules, as JSON.
    :param version: the version on trial.
    :param since: when it began, in ISO 8601.
    :param poll_interval: seconds between two looks, and before the first; see `airflow_mlops.triggers.window.NOTED`.
    """

    def __init__(
        self,
        store: str,
        registry: dict[str, Any],
        params: dict[str, Any],
        version: str,
        since: str,
        poll_interval: float = 10.0,
    ) -> None:
        super().__init__()
        self.store, self.registry, self.params = store, registry, params
        self.version, self.since, self.poll_interval = version, since, poll_interval

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The trigger as Airflow stores it."""
        names = ("store", "registry", "params", "version", "since", "poll_interval")
        return f"{type(self).__module__}.{type(self).__qualname__}", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look until there is something to say."""
        while True:
            await asyncio.sleep(self.poll_interval)
            try:
                found = await asyncio.to_thread(self._look)
            except MlopsError as error:
                if error.retryable:
                    self.log.warning("cannot look at the trial now: %s", error)
                    continue
                # The worker meets the same error and says it in the task's log.
                yield TriggerEvent({"state": "unknown"})
                return
            if found.state != "baking":
                yield TriggerEvent({"state": found.state})
                return

    def _look(self) -> Standing:
        rules = Trial.model_validate(self.params)
        target = deployment_of(rules.target, {"google": rules.google})
        with google_credentials(*rules.google_connections):
            servers = target.live(RegistryRef.model_validate(self.registry), Store(self.store))
        return standing(rules, servers, self.version, datetime.fromisoformat(self.since), datetime.now(UTC))
