"""What differs between two environments: which release they run, and what their declarations say there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from airflow_mlops.delivery.bundle import Bundle
from airflow_mlops.delivery.environment import declarations_in
from airflow_mlops.spec.load import load_declarations
from airflow_mlops.spec.pipeline import Pipeline

Differences = dict[str, dict[str, tuple[Any, Any]]]
"""By pipeline (or ``release``) and dotted key the two values; None where a side says nothing."""


def differences(first: Bundle, one: str, second: Bundle, other: str) -> Differences:
    """What differs between two releases, each in its environment."""
    about = ("version", "commit", "made_by")
    digests = first.manifest.digest, second.manifest.digest
    found: Differences = {}
    if digests[0] != digests[1]:
        told: dict[str, tuple[Any, Any]] = {"digest": digests}
        told |= {key: (getattr(first.manifest, key), getattr(second.manifest, key)) for key in about}
        paths = sorted({*first.manifest.files, *second.manifest.files})
        told |= {path: (first.manifest.files.get(path), second.manifest.files.get(path)) for path in paths}
        found["release"] = {key: pair for key, pair in told.items() if pair[0] != pair[1]}
    return found | _of_pipelines(
        [each.pipeline for each in declarations_in(first, one)],
        [each.pipeline for each in declarations_in(second, other)],
    )


def of_files(files: Sequence[str], one: str, other: str) -> Differences:
    """What differs between two environments of the same declarations."""
    sides = [[each.pipeline for file in files for each in load_declarations(file, name)] for name in (one, other)]
    return _of_pipelines(*sides)


def _of_pipelines(first: Sequence[Pipeline], second: Sequence[Pipeline]) -> Differences:
    sides = [{each.name: dict(_flat(_plain(each))) for each in pipelines} for pipelines in (first, second)]
    found: Differences = {}
    for name in sorted({*sides[0], *sides[1]}):
        left, right = (side.get(name, {}) for side in sides)
        keys = {key: (left.get(key), right.get(key)) for key in sorted({*left, *right})}
        if differing := {key: pair for key, pair in keys.items() if pair[0] != pair[1]}:
            found[name] = differing
    return found


def _plain(pipeline: Pipeline) -> dict[str, Any]:
    return pipeline.model_dump(mode="json", by_alias=True, exclude={"environments"})


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, each in value.items():
            yield from _flat(each, f"{path}.{key}" if path else str(key))
    elif value is not None:
        yield path, value
