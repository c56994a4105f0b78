"""Waits for a job of a backend to end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_mlops.backends.base import TERMINAL, Backend, Handle, State, backend_of, connection_of
from airflow_mlops.errors import MlopsError
from airflow_mlops.hooks.google import google_credentials


class JobTrigger(BaseTrigger):
    """Fires once when a job has ended, whichever way.

    :param backend: the backend's name.
    :param options: what the backend is made with.
    :param handle: the job, as the JSON of a `Handle`.
    :param poll_interval: seconds between two looks, and before the first; see `airflow_mlops.triggers.window.NOTED`.
    """

    def __init__(
        self, backend: str, options: dict[str, Any], handle: dict[str, Any], poll_interval: float = 10.0
    ) -> None:
        super().__init__()
        self.backend, self.options, self.handle, self.poll_interval = backend, options, handle, poll_interval

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The trigger as Airflow stores it."""
        arguments = {
            "backend": self.backend,
            "options": self.options,
            "handle": self.handle,
            "poll_interval": self.poll_interval,
        }
        return f"{type(self).__module__}.{type(self).__qualname__}", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look at the job until it has ended."""
        # Hundreds may begin at once, and the loop is everybody's.
        backend, handle = await asyncio.to_thread(_made, self.backend, self.options, self.handle)
        while True:
            await asyncio.sleep(self.poll_interval)
            try:
                state = await asyncio.to_thread(_look, backend, handle)
            except MlopsError as error:
                if error.retryable:
                    self.log.warning("cannot look at the job now: %s", error)
                    continue
                # The worker meets the same error and says it in the task's log.
                state = "lost"
            if state in TERMINAL:
                yield TriggerEvent({"handle": self.handle})
                return

    async def on_kill(self) -> None:
        """Cancel the job when a person clears or marks the task."""
        backend, handle = await asyncio.to_thread(_made, self.backend, self.options, self.handle)
        await asyncio.to_thread(_cancel, backend, handle)


def _made(name: str, options: dict[str, Any], handle: dict[str, Any]) -> tuple[Backend, Handle]:
    return backend_of(name, options), Handle.model_validate(handle)


def _look(backend: Backend, handle: Handle) -> State:
    with google_credentials(connection_of(backend)):
        return backend.status(handle)


def _cancel(backend: Backend, handle: Handle) -> None:
    with google_credentials(connection_of(backend)):
        backend.cancel(handle)
