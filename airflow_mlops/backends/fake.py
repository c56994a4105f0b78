"""A backend that behaves like a remote one, for tests and for trying a DAG out.

It really runs the Call, but says so late, or never. Its jobs live in a folder, so another process finds them, as
another worker would.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from airflow_mlops.backends.base import TERMINAL, Handle, State
from airflow_mlops.backends.local import environment
from airflow_mlops.call.dispatch import run
from airflow_mlops.call.store import Store, create_if_absent
from airflow_mlops.call.wire import Call, Outcome
from airflow_mlops.errors import BackendError, JobCancelledError, JobLostError, MlopsError

Mode = Literal["immediate", "deferred", "slow", "lost_after_submit", "vanishing"]


class FakeBackend:
    """Runs Calls as if they were elsewhere.

    Args:
        folder: where its jobs live.
        mode: ``immediate`` is done at once; ``deferred`` after ``seconds``; ``slow`` also takes that long to answer a
            submission; ``lost_after_submit`` accepts the first submission of a Call and then breaks the connection;
            ``vanishing`` loses the job.
        seconds: how long a job takes.
    """

    attached = False

    def __init__(self, folder: str, mode: Mode = "deferred", seconds: float = 1.0) -> None:
        self.folder, self.mode, self.seconds = Path(folder), mode, seconds
        self.folder.mkdir(parents=True, exist_ok=True)

    def _read(self, job: str) -> dict[str, Any] | None:
        try:
            value: dict[str, Any] = json.loads((self.folder / f"{job}.json").read_text())
        except FileNotFoundError:
            return None
        return value

    def _update(self, job: str, **changes: Any) -> None:
        beside = self.folder / f".{job}.{os.getpid()}"
        beside.write_text(json.dumps({**(self._read(job) or {}), **changes}))
        beside.replace(self.folder / f"{job}.json")

    def submissions(self) -> int:
        """How many jobs were ever started."""
        return len(list(self.folder.glob("*.submission")))

    def find(self, call: Call) -> Handle | None:
        """The job of an earlier try, by the Call's identity, as a remote service finds one by its label."""
        handle = Handle(backend="fake", job=call.identity, call=call)
        return handle if self.status(handle) in ("running", "done") else None

    def submit(self, call: Call, secrets: Mapping[str, str]) -> Handle:
        """Accept the Call, run it, and keep what it came to until its time has passed."""
        if self.mode == "slow":
            time.sleep(self.seconds)
        started = {"ready": time.time() + (0 if self.mode == "immediate" else self.seconds), "cancelled": False}
        accepted = create_if_absent(str(self.folder / f"{call.identity}.json"), json.dumps(started).encode())
        if not accepted and self.find(call) is not None:
            raise BackendError(f"the job {call.identity} is there already", fix="find it before submitting")
        (self.folder / f"{call.identity}.{uuid.uuid4().hex}.submission").touch()
        self._update(call.identity, **started, error=None, log=[f"{call.where}: accepted"])
        try:
            with environment(secrets):
                run(call)
        except MlopsError as error:
            self._update(call.identity, error=[type(error).__name__, str(error), error.retryable])
        if self.mode == "lost_after_submit" and accepted:
            raise JobLostError(f"the connection broke after the job {call.identity} was accepted", where=call.where)
        if self.mode == "vanishing":
            (self.folder / f"{call.identity}.json").unlink()
        return Handle(backend="fake", job=call.identity, call=call)

    def status(self, handle: Handle) -> State:
        """Where the job stands, by the clock."""
        job = self._read(handle.job)
        if job is None:
            return "lost"
        if job["cancelled"]:
            return "cancelled"
        if time.time() < job["ready"]:
            return "running"
        return "failed" if job.get("error") else "done"

    def logs(self, handle: Handle) -> Iterator[str]:
        """What the job has said."""
        yield from (self._read(handle.job) or {}).get("log", [])

    def cancel(self, handle: Handle) -> None:
        """End a job that is still running."""
        if self.status(handle) not in TERMINAL:
            self._update(handle.job, cancelled=True)

    def collect(self, handle: Handle) -> Outcome:
        """The Outcome, or the error the job ended with."""
        state = self.status(handle)
        where = handle.call.where
        if state == "cancelled":
            raise JobCancelledError(f"the job {handle.job} was cancelled", where=where)
        if state == "failed":
            name, text, retryable = (self._read(handle.job) or {})["error"]
            raise (JobLostError if retryable else BackendError)(f"the job {handle.job} failed: {name}: {text}")
        if state == "running":
            raise BackendError(f"the job {handle.job} is still running", where=where, fix="ask for its status first")
        outcome = Store(handle.call.store).read_outcome(handle.call) if state == "done" else None
        if outcome is None:
            raise JobLostError(f"the job {handle.job} can no longer be found", where=where)
        return outcome
