"""Strategies: any valid declaration, with the odd texts and numbers that YAML likes to misread."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

from hypothesis import strategies as st

from airflow_mlops.spec import DataSchema, Pipeline

MISREAD = ("on", "no", "null", "~", "1e3", ".5e3", "1_000", "0x1f", "1:30", "2013-01-01", "=", "<<", "a: b", "#", "")
BREAKS = ("a\nb", "\n", "a\r", "a\x85b", "\u2028", "\ufeff", "\0", "tab\t", " a ")

letters = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
texts = letters | st.sampled_from(MISREAD + BREAKS)
numbers = st.integers() | st.floats(allow_nan=False)
columns = texts.filter(bool)
durations = st.builds(timedelta, seconds=st.integers(0, 10**9))
plain: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def _section(required: dict[str, Any], optional: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(required, optional=optional)


_names = st.lists(columns, max_size=3, unique=True)
_versus = _section({}, {"metric": st.none() | texts, "confidence": st.floats(0.51, 0.99), "margin": st.floats(0, 1)})

_params = st.dictionaries(texts, plain, max_size=3)
_triggers = st.lists(st.just("drift") | st.fixed_dictionaries({"model": texts}), max_size=3)

_spans = st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)).filter(lambda pair: pair[0] != pair[1])
ranges = st.builds(
    lambda pair, whole, log: {
        "low": min(pair) if whole else min(pair) / 7,
        "high": max(pair) if whole else max(pair) / 7,
        "log": log,
    },
    _spans,
    st.booleans(),
    st.booleans(),
)
steps = st.builds(
    lambda low, step, count: {"low": low, "high": low + step * count, "step": step},
    st.integers(-1000, 1000),
    st.integers(1, 50),
    st.integers(1, 50),
)
finite = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
choices = st.lists(
    st.none() | st.booleans() | finite | texts | st.lists(finite, max_size=2), min_size=2, max_size=5, unique_by=repr
).map(lambda values: {"choices": values})
spaces = st.dictionaries(texts, ranges | steps | choices, min_size=1, max_size=3)
_tune = _section(
    {"space": spaces},
    {
        "trials": st.integers(1, 10_000),
        "sampler": st.sampled_from(["tpe", "random", "grid"]),
        "pruner": st.sampled_from(["none", "median", "hyperband"]),
        "metric": st.none() | texts,
        "as_tasks": st.none() | st.integers(2, 1000),
        "timeout": st.none() | durations,
    },
)

pipelines = _section(
    {
        "name": st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,20}", fullmatch=True),
        "data": _section(
            {"source": columns, "target": columns},
            {"time": st.none() | columns, "key": _names, "window": st.sampled_from([None, "week"]), "schema": texts},
        ),
        "train": _section(
            {"estimator": st.just("sklearn.dummy.DummyClassifier")},
            {"params": _params, "windows": st.just({"last": 3}), "seed": st.integers()},
        ),
    },
    {
        "description": texts,
        "tags": _names,
        "schedule": st.sampled_from([None, "@weekly", "0 3 * * *"]),
        "task": st.sampled_from([None, "binary", "regression"]),
        "prepare": _section(
            {},
            {
                "features": st.just("churn.features:build"),
                "split": st.fixed_dictionaries({"by": st.just("group"), "test": st.floats(0.01, 0.9)}),
            },
        ),
        "tune": st.none() | _tune,
        "evaluate": _section({}, {"metrics": _names, "slices": _names, "fairness": _names, "plots": st.booleans()}),
        "validate_model": _section(
            {}, {"min": st.dictionaries(texts, st.floats(allow_nan=False)), "versus_champion": st.none() | _versus}
        ),
        "monitor": _section({}, {"poll": durations, "data_drift": _section({}, {"columns": _names})}),
        "retrain": _section(
            {},
            {
                "mode": st.sampled_from(["auto", "suggest", "observe"]),
                "triggers": _triggers,
                "cooldown": durations,
                "max_per_week": st.none() | st.integers(1, 100),
                "approval": _section({}, {"users": _names, "timeout": st.sampled_from(["1h", "3d"])}),
            },
        ),
        "predict": _section({}, {"output": st.none() | texts}),
        "retries": st.integers(0, 9),
        "retry_delay": durations,
    },
).map(Pipeline.model_validate)

_kinds: st.SearchStrategy[Literal["number", "string"]] = st.sampled_from(["number", "string"])
schemas = _section(
    {
        "columns": st.dictionaries(
            texts | st.text("ab ", min_size=80, max_size=200),
            _section(
                {"type": _kinds},
                {
                    "required": st.booleans(),
                    "min": st.floats(allow_nan=False),
                    "categories": st.lists(texts | st.integers() | st.booleans(), max_size=4),
                },
            ),
            max_size=4,
        )
    },
    {"extra_columns": st.sampled_from(["allow", "stop"]), "min_rows": st.integers(1, 10**6)},
).map(DataSchema.model_validate)
