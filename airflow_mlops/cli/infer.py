"""A data schema from rows, for a person to review."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from typing import Any

from airflow_mlops.call.dispatch import stage_module
from airflow_mlops.call.source import windows_of
from airflow_mlops.call.store import Store
from airflow_mlops.errors import DataNotFoundError
from airflow_mlops.spec import dump_schema, load_pipeline, train_plan
from airflow_mlops.spec.stages import Extract
from airflow_mlops.spec.window import Window, parse_key

_HEAD = """\
# Proposed by `airflow-mlops schema infer` from {rows:,} rows{where}: review every line, for other rows follow.
# A range is a rule that somebody knows, so what was seen is only told beside the column: min and max are yours to say.
# There is more to say than columns: min_rows, checks, volume, skew, quarantine (docs/reference/schema.md).
"""


def infer(source: str, window: str | None) -> str:
    """The YAML of a schema proposed from a data file, or from a window of a pipeline's source."""
    if source.endswith((".yaml", ".yml")):
        pipeline = load_pipeline(source)
        node, key, target = train_plan(pipeline)[0], pipeline.data.key, pipeline.data.target
        params: Extract = node.params.model_copy(update={"last": 1}).resolved(os.path.dirname(os.path.abspath(source)))  # type: ignore[assignment]
    else:
        params, key, target = Extract(source=source), (), None
    chosen = parse_key(params.grain, window) if window else newest(params)
    return proposed(rows_of(params, chosen), key=key, time=params.time, target=target, window=chosen)


def newest(params: Extract) -> Window | None:
    """The newest window that is there; None where the source comes as one whole.

    Raises:
        DataNotFoundError: when no window is there.
    """
    if not isinstance(params.source, str) or "{window}" not in params.source:
        return None
    there = windows_of(params.source, params.grain)
    if not there:
        raise DataNotFoundError(f"no window of {params.source} is there", fix="correct data.source")
    return there[-1]


def rows_of(params: Extract, window: Window | None) -> Any:
    """The rows of a source, as an Arrow table."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        data = stage_module("extract").extract(params, window, store)
        return stage_module("tables").read_table(data, store)


def proposed(table: Any, *, key: Sequence[str], time: str | None, target: str | None, window: Window | None) -> str:
    """The YAML of a schema proposed from an Arrow table."""
    proposal = stage_module("infer_schema").infer(table, key=key, time=time, target=target, window=window)
    head = _HEAD.format(rows=table.num_rows, where=f" of {window.key}" if window else "")
    return head + dump_schema(proposal.schema, proposal.hints)
