"""``environments``: one declaration, and what may differ between dev, staging and prod laid over it.

Maps are merged key by key; anything else is replaced. Only where and when a pipeline runs may differ, and who is asked:
what makes the model (features, training, the gate) is the same everywhere, so that what was tested is what runs.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_mlops.spec.load import Document, Path_

ENVIRONMENTS = "environments"
VARIABLE = "AIRFLOW__AIRFLOW_MLOPS__ENVIRONMENT"
"""Airflow's variable for ``[airflow_mlops] environment``, which the command line reads too."""

MAY_DIFFER: tuple[str, ...] = (
    "schedule",
    "owner",
    "tags",
    "data.source",
    "approval",
    "deploy",
    "monitor.schedule",
    "monitor.poll",
    "monitor.performance.labels",
    "retrain",
    "predict",
    "pool",
    "backend",
    "google",
    "runtime",
    "registry",
    "retries",
    "retry_delay",
)
"""The keys that an environment may set, and everything below them."""


def merged(shared: Any, overrides: Any) -> Any:
    """One value laid over another: maps key by key, anything else replaced."""
    if isinstance(shared, Mapping) and isinstance(overrides, Mapping):
        return {**shared, **{key: merged(shared.get(key), value) for key, value in overrides.items()}}
    return overrides


def not_allowed(overlay: Mapping[str, Any]) -> Iterator[tuple[Path_, str]]:
    """The keys of an overlay that may not differ, and what to say of each."""
    for path in _leaves(overlay, ()):
        name = ".".join(map(str, path))
        if any(name == each or name.startswith(f"{each}.") for each in MAY_DIFFER):
            continue
        close = difflib.get_close_matches(name, MAY_DIFFER, n=1)
        hint = f"; try: {close[0]}" if close else ""
        yield path, f"{name!r} is the same in every environment; may differ: {', '.join(MAY_DIFFER)}{hint}"


def _leaves(value: Any, path: Path_) -> Iterator[Path_]:
    """The paths of what an overlay sets; one that may differ as a whole is not looked into."""
    name = ".".join(map(str, path))
    if isinstance(value, Mapping) and value and name not in MAY_DIFFER:
        for key, each in value.items():
            yield from _leaves(each, (*path, key))
    elif path:
        yield path


def in_environment(document: Document, environment: str) -> Document:
    """The document with an environment's values laid over it, each with the line where the environment says so."""
    overlay = document.value[ENVIRONMENTS][environment]
    shared = {key: value for key, value in document.value.items() if key != ENVIRONMENTS}
    lines = {path: line for path, line in document.lines.items() if path[:1] != (ENVIRONMENTS,)}
    for path, line in document.lines.items():
        if path[:2] == (ENVIRONMENTS, environment) and len(path) > 2:
            lines[path[2:]] = line
    return document._replace(value=merged(shared, overlay), lines=lines)
