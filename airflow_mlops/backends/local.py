"""The stage runs here, in the process that asks, and is done when `submit` returns."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from airflow_mlops.backends.base import Handle, State
from airflow_mlops.call.dispatch import run
from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import Call, Outcome
from airflow_mlops.errors import JobLostError


@contextmanager
def environment(secrets: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for as long as the scope lasts."""
    before = {name: os.environ.get(name) for name in secrets}
    os.environ.update(secrets)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class LocalBackend:
    """Runs Calls in the worker itself."""

    attached = True

    def find(self, call: Call) -> Handle | None:
        """Nothing: what an earlier try has done is found by the stage itself."""
        return None

    def submit(self, call: Call, secrets: Mapping[str, str]) -> Handle:
        """Run the stage to its end."""
        with environment(secrets):
            run(call)
        return Handle(backend="local", job=call.identity, call=call)

    def status(self, handle: Handle) -> State:
        """Done, or lost when its Outcome is not in the store."""
        return "done" if Store(handle.call.store).read_outcome(handle.call) else "lost"

    def logs(self, handle: Handle) -> Iterator[str]:
        """Nothing: its lines went to the log of this very process."""
        return iter(())

    def cancel(self, handle: Handle) -> None:
        """Nothing: the process that runs the stage is the one to end."""

    def collect(self, handle: Handle) -> Outcome:
        """The Outcome that the stage has kept in the store."""
        outcome = Store(handle.call.store).read_outcome(handle.call)
        if outcome is None:
            raise JobLostError(f"the outcome of {handle.job} is not in the store", where=handle.call.where)
        return outcome
