"""Google Cloud's long-running operations: what was begun is waited for, also by somebody who did not begin it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from airflow_mlops.errors import CloudError, CloudNotFoundError, CloudUnreachableError
from airflow_mlops.google.rest import Rest

T = TypeVar("T")

_FIRST, _LONGEST = 0.2, 15.0
_TRIES = 4
_NO_ROOM = {4: "DEADLINE_EXCEEDED", 8: "RESOURCE_EXHAUSTED", 14: "UNAVAILABLE"}
"""The codes of errors that may pass, by gRPC's numbers."""


def finished(rest: Rest, operation: dict[str, Any], what: str, seconds: float) -> dict[str, Any]:
    """Wait for an operation; return its response.

    Args:
        rest: the service.
        operation: what the service said when it began.
        what: what it does, for the error.
        seconds: how long it may take.

    Raises:
        CloudUnreachableError: when it failed for want of room.
        CloudError: when it failed otherwise, or takes longer; then it may still end well, and whoever comes next waits
            for it.
    """
    until, pause = time.monotonic() + seconds, _FIRST
    while not operation.get("done"):
        if time.monotonic() > until:
            raise CloudError(
                f"{what} takes longer than {seconds / 60:.0f} min: {operation['name']}",
                fix="look there, then clear the task: it goes on where this one has stopped",
            )
        time.sleep(pause)
        pause = min(pause * 1.5, _LONGEST)
        operation = rest.get(f"v1/{operation['name']}")
    error = operation.get("error")
    if error:
        kind = CloudUnreachableError if error.get("code") in _NO_ROOM else CloudError
        raise kind(f"{what} failed: {error.get('message') or error.get('code')}")
    return dict(operation.get("response", {}))


def await_others(rest: Rest, resource: str, seconds: float) -> None:
    """Wait for what was begun on a resource and is not over: by an earlier try that was ended, or by somebody else.

    How it ends is not our business: what has become of the resource is looked at afterwards.
    """
    try:
        going = [each for each in rest.pages(f"v1/{resource}/operations", "operations") if not each.get("done")]
    except CloudNotFoundError:
        return
    for each in going:
        try:
            finished(rest, each, f"an operation on {resource.rpartition('/')[2]}", seconds)
        except CloudUnreachableError:
            raise
        except CloudError:
            continue


def await_there(look: Callable[[], Any], what: str, seconds: float) -> None:
    """Wait for what somebody else is making."""
    until, pause = time.monotonic() + seconds, _FIRST
    while not look():
        if time.monotonic() > until:
            raise CloudError(f"{what} exists, says Google Cloud, and is not there after {seconds / 60:.0f} min")
        time.sleep(pause)
        pause = min(pause * 1.5, _LONGEST)


def persistently(deed: Callable[[], T]) -> T:
    """Do something that looks first at what is there already; once more where Google Cloud did not answer."""
    for number in range(_TRIES):
        try:
            return deed()
        except CloudUnreachableError:
            if number == _TRIES - 1:
                raise
            time.sleep(0.5 * 2**number)
    raise AssertionError("the last try returns or raises")
