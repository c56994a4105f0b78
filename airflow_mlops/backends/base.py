"""Where a Call runs: the seam between Airflow and whatever carries a stage.

A backend is a value (``backend: local``), never a class per stage. A further one is entered by an entry point of the
group ``airflow_mlops.backends`` that names a class with the methods of `Backend`; nothing here changes for it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, Protocol

from airflow_mlops.call.wire import Call, Outcome, Wire
from airflow_mlops.errors import BackendError, DeclarationError
from airflow_mlops.spec.pipeline import RUNTIME_BACKENDS, Runtime
from airflow_mlops.spec.stages import resolve

State = Literal["running", "done", "failed", "cancelled", "lost"]
_LINE = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL) ([\w.]+): (.*)")
_ENDS_JOBS = frozenset({"vertex"})
TERMINAL: frozenset[State] = frozenset({"done", "failed", "cancelled", "lost"})


class Handle(Wire):
    """How to find a job again, from any process; it goes through XCom and triggers as JSON."""

    backend: str
    """The backend's name."""
    job: str
    """The job's own id there."""
    call: Call
    """What was asked."""
    url: str | None = None
    """Where a browser sees the job, if it has a page."""
    log_url: str | None = None
    """Where a browser sees its log, if that has one."""


class Backend(Protocol):
    """What every backend does. The conformance suite in ``tests/contract`` holds each of them to it."""

    attached: bool
    """Whether a job lives no longer than the process that submits it. That process then stays and follows `logs`; else
    a task is deferred while the job goes on."""

    def find(self, call: Call) -> Handle | None:
        """The job that an earlier try of this Call submitted, if it still counts: running or done."""

    def submit(self, call: Call, secrets: Mapping[str, str]) -> Handle:
        """Start the Call. ``secrets`` are environment variables; they are kept nowhere.

        A backend may complete inside; then an error of the stage is raised from here.
        """

    def status(self, handle: Handle) -> State:
        """Where the job stands. Cheap: a triggerer asks it again and again."""

    def logs(self, handle: Handle) -> Iterator[str]:
        """The job's log lines: so far, or, where the backend is attached, as they come until the job has ended."""

    def cancel(self, handle: Handle) -> None:
        """End the job; nothing happens when it has ended."""

    def collect(self, handle: Handle) -> Outcome:
        """The Outcome of a job that is done.

        Raises:
            MlopsError: the stage's own error when it failed, `JobCancelledError`, or `JobLostError`.
        """


@cache
def _known() -> dict[str, EntryPoint]:
    """What is installed; to look through all packages takes 20 ms, as long as many a task works."""
    return {entry.name: entry for entry in entry_points(group="airflow_mlops.backends")}


def backend_of(name: str, options: Mapping[str, Any] | None = None) -> Backend:
    """The backend of that name.

    Raises:
        BackendError: when no entry point has that name, or it does not load.
    """
    known = _known()
    if name not in known:
        raise BackendError(f"there is no backend {name!r}", allowed=", ".join(sorted(known)))
    try:
        backend: Backend = known[name].load()(**dict(options or {}))
    except (ImportError, AttributeError, TypeError) as error:
        raise BackendError(f"the backend {name!r} cannot be made: {error}") from error
    return backend


def carrier(
    backend: str,
    options: Mapping[str, Any] | None,
    runtime: Runtime | None,
    base: str,
    timeout: timedelta | None = None,
) -> tuple[str, dict[str, Any]]:
    """The backend that carries a stage, and what it is made with.

    Args:
        backend: the backend's name where nothing else is said.
        options: what it is made with.
        runtime: the interpreter or environment that the stage wants for itself, if any.
        base: the folder that relative paths start from.

        timeout: how long the stage may take, for a backend that ends its jobs itself.

    Raises:
        DeclarationError: when a runtime is asked of a backend that has none.
    """
    if runtime is None:
        limit = {"timeout": timeout.total_seconds()} if timeout and backend in _ENDS_JOBS else {}
        return backend, {**limit, **(options or {})}
    if backend not in RUNTIME_BACKENDS:
        raise DeclarationError([f"the backend {backend!r} runs no `runtime`; allowed: {', '.join(RUNTIME_BACKENDS)}"])
    told = runtime.model_dump(exclude_none=True)
    for name in ("python", "requirements"):
        # A bare name of an interpreter is looked up on PATH.
        if name in told and not (name == "python" and "/" not in told[name]):
            told[name] = resolve(base, told[name])
    return "subprocess", {**told, **(options or {})}


def connection_of(backend: Backend) -> str | None:
    """The Airflow connection to Google Cloud that a backend acts by; None where it acts by none."""
    return getattr(backend, "connection", None)


def others_of(backend: Backend, call: Call) -> Iterator[Handle]:
    """The jobs that go on for other Calls of a pipeline, where a backend's jobs outlive whoever waits for them."""
    found: Iterator[Handle] = getattr(backend, "others", lambda _: iter(()))(call)
    return found


def relay(lines: Iterable[str], log: logging.Logger) -> None:
    """Log a job's lines here, with level and logger of those that have the runner's form."""
    for line in lines:
        match = _LINE.fullmatch(line)
        if match:
            logging.getLogger(match[2]).log(getattr(logging, match[1]), "%s", match[3])
        elif line:
            log.info("%s", line)
