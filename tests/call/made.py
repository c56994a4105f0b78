"""Calls, and strategies for all that crosses the wire."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from hypothesis import strategies as st

from airflow_mlops.call import ArtifactRef, Call, RegistryRef
from airflow_mlops.spec.window import window_at

letters = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=10)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | letters,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(letters, inner, max_size=3),
    max_leaves=8,
)
refs = st.builds(
    ArtifactRef,
    uri=letters,
    digest=letters,
    kind=letters,
    rows=st.none() | st.integers(0),
    schema_id=st.none() | letters,
)
windows = st.none() | st.datetimes(datetime(1900, 1, 1), timezones=st.just(UTC), max_value=datetime(3000, 1, 1)).map(
    lambda at: window_at("day", at)
)
calls = st.builds(
    Call,
    pipeline=letters,
    stage=letters,
    run=letters,
    window=windows,
    inputs=st.dictionaries(letters, refs, max_size=2),
    params=st.dictionaries(letters, json_values, max_size=3),
    code=st.none() | refs,
    store=letters,
    registry=st.none() | st.builds(RegistryRef, uri=letters, model=letters, experiment=letters),
)


def call(stage: str = "extract", **more: Any) -> Call:
    """A Call with everything it must have."""
    return Call.model_validate({"pipeline": "churn", "stage": stage, "run": "run-1", "store": "memory://none", **more})
