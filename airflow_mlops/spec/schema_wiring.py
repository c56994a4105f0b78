"""What only the declaration and its data schema show together: columns that the one names and the other does not."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence

from airflow_mlops.spec.data_schema import DataSchema
from airflow_mlops.spec.pipeline import Pipeline
from airflow_mlops.spec.wiring import Problem

FILL_IN = "FILL_IN"
"""What stands in a declaration by ``airflow-mlops adopt`` where a person must say it."""
_TIMES = ("timestamp", "date")


def check_columns(pipeline: Pipeline, schema: DataSchema) -> Iterator[Problem]:
    """Find the raw columns of a declaration that its data schema does not promise.

    Where the schema allows columns that it does not name, they may be there all the same.
    """
    data, evaluate = pipeline.data, pipeline.evaluate
    named: list[tuple[tuple[str | int, ...], str]] = [(("data", "target"), data.target)]
    named += [(("data", "time"), data.time)] if data.time else []
    named += [(("prepare", "split", "group"), pipeline.prepare.split.group)] if pipeline.prepare.split.group else []
    lists: dict[tuple[str, ...], Sequence[str]] = {
        ("data", "key"): data.key,
        ("data", "drop"): data.drop,
        ("evaluate", "slices"): evaluate.slices,
        ("evaluate", "fairness"): evaluate.fairness,
        ("monitor", "data_drift", "columns"): pipeline.monitor.data_drift.columns,
    }
    named += [((*path, index), name) for path, names in lists.items() for index, name in enumerate(names)]
    for path, name in named:
        if name not in schema.columns:
            if path == ("data", "target") and name == FILL_IN:
                what = "the target is not named yet: airflow-mlops adopt has left it open"
                fix = f"write the column to predict in place of {FILL_IN}"
                yield Problem(path, what, allowed=", ".join(schema.columns), fix=fix)
                continue
            if schema.extra_columns == "allow":
                continue
            close = difflib.get_close_matches(name, schema.columns, n=1)
            yield Problem(
                path,
                f"the data schema has no column {name!r}",
                allowed=", ".join(schema.columns),
                fix=close[0] if close else f"add it to {data.schema_file}",
            )
        elif path == ("data", "time") and schema.columns[name].type not in _TIMES:
            times = ", ".join(each for each, column in schema.columns.items() if column.type in _TIMES)
            yield Problem(
                path,
                f"the column {name!r} is a {schema.columns[name].type} in the data schema, and no time",
                allowed="a timestamp or a date" + (f", as {times}" if times else ""),
                fix="store it as one where the data is written, in CSV as 2024-05-26, and change its type in "
                f"{data.schema_file}",
            )
