"""Where a Call runs: the seam between Airflow and whatever carries a stage.

A backend is a value (``backend: local``), never a class per stage. A further one is entered by an entry point of the
group ``airflow_mlops.backends`` that names a class with the methods of `Backend`; nothing here changes for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any, Literal, Protocol

from airflow_mlops.call.wire import Call, Outcome, Wire
from airflow_mlops.errors import BackendError

State = Literal["running", "done", "failed", "cancelled", "lost"]
TERMINAL: frozenset[State] = frozenset({"done", "failed", "cancelled", "lost"})


class Handle(Wire):
    """How to find a job again, from any process; it goes through XCom and triggers as JSON."""

    backend: str
    """The backend's name."""
    job: str
    """The job's own id there."""
    call: Call
    """What was asked."""


class Backend(Protocol):
    """What every backend does. The conformance suite in ``tests/contract`` holds each of them to it."""

    def find(self, call: Call) -> Handle | None:
        """The job that an earlier try of this Call submitted, if it still counts: running or done."""

    def submit(self, call: Call, secrets: Mapping[str, str]) -> Handle:
        """Start the Call. ``secrets`` are environment variables; they are kept nowhere.

        A backend may complete inside; then an error of the stage is raised from here.
        """

    def status(self, handle: Handle) -> State:
        """Where the job stands. Cheap: a triggerer asks it again and again."""

    def logs(self, handle: Handle) -> Iterator[str]:
        """The job's log lines so far."""

    def cancel(self, handle: Handle) -> None:
        """End the job; nothing happens when it has ended."""

    def collect(self, handle: Handle) -> Outcome:
        """The Outcome of a job that is done.

        Raises:
            MlopsError: the stage's own error when it failed, `JobCancelledError`, or `JobLostError`.
        """


def backend_of(name: str, options: Mapping[str, Any] | None = None) -> Backend:
    """The backend of that name.

    Raises:
        BackendError: when no entry point has that name, or it does not load.
    """
    known = {entry.name: entry for entry in entry_points(group="airflow_mlops.backends")}
    if name not in known:
        raise BackendError(f"there is no backend {name!r}", allowed=", ".join(sorted(known)))
    try:
        backend: Backend = known[name].load()(**dict(options or {}))
    except (ImportError, AttributeError, TypeError) as error:
        raise BackendError(f"the backend {name!r} cannot be made: {error}") from error
    return backend
