"""A Call of ``airflow-mlops run``, carried and waited for: here, in a process beside, or as a job elsewhere."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping

from airflow_mlops.backends import TERMINAL, Backend, Handle, State, relay
from airflow_mlops.call.connection import variable
from airflow_mlops.call.dispatch import known
from airflow_mlops.call.wire import Call, Outcome
from airflow_mlops.errors import MlopsError

log = logging.getLogger(__name__)

_CREDENTIALS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
_LOOK_SECONDS = 3.0


def carry(backend: Backend, call: Call) -> Outcome:
    """Let the backend run the Call; whoever interrupts the wait ends its job."""
    if backend.attached:
        handle = backend.submit(call, {})
    else:
        found = backend.find(call)
        if found is None and (outcome := known(call)) is not None:
            return outcome
        handle = found if found is not None else backend.submit(call, _secrets(call))
        _say(call, f"runs as {handle.url or handle.job}")
        try:
            _await(backend, handle)
        except KeyboardInterrupt:
            backend.cancel(handle)
            _say(call, "its job is cancelled")
            raise
    relay(backend.logs(handle), log)
    return backend.collect(handle)


def _await(backend: Backend, handle: Handle) -> None:
    """Wait for a job to end; a look that fails for now is repeated."""
    while True:
        try:
            state: State = backend.status(handle)
        except MlopsError as error:
            if not error.retryable:
                raise
            _say(handle.call, str(error))
        else:
            if state in TERMINAL:
                return
        time.sleep(_LOOK_SECONDS)


def _secrets(call: Call) -> dict[str, str]:
    """What a job elsewhere needs of this process's environment, for it inherits nothing."""
    source = call.params.get("source")
    names = [*_CREDENTIALS, *([variable(source["connection"])] if isinstance(source, Mapping) else [])]
    return {name: os.environ[name] for name in names if name in os.environ}


def _say(call: Call, what: str) -> None:
    print(f"  {call.stage:<15} {what}", file=sys.stderr, flush=True)
