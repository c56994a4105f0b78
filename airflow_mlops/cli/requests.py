"""``airflow-mlops requests``: every wish to retrain a model, with its reason, what was decided, and what came out."""

from __future__ import annotations

import argparse
import json
from typing import Any

from airflow_mlops.cli.where import ELSEWHERE, store_of
from airflow_mlops.errors import RegistryError
from airflow_mlops.registry.policy import Recorded
from airflow_mlops.registry.requests import Requests


def show(options: argparse.Namespace) -> int:
    """Print the requests of a pipeline, oldest first.

    Raises:
        RegistryError: when the store has none of that name.
    """
    store = store_of(options, options.pipeline)
    found = Requests(store, options.pipeline).all()
    if options.json:
        print(json.dumps([as_json(each) for each in found], indent=2, ensure_ascii=False))
        return 0
    if not found and options.pipeline not in store.names("ledger"):
        names = ", ".join(sorted({*store.names("requests"), *store.names("ledger")}))
        raise RegistryError(f"{store.root} knows nothing of {options.pipeline!r}", allowed=names or None, fix=ELSEWHERE)
    for each in found:
        print("\n".join(_lines(each)))
    if not found:
        print(f"nothing has asked to retrain {options.pipeline}")
    return 0


def as_json(recorded: Recorded) -> dict[str, Any]:
    """A request as plain JSON values."""
    request = recorded.request
    steps = [
        {name: value for name, value in step._asdict().items() if value is not None}
        | {"at": step.at.isoformat()}
        | ({"until": step.until.isoformat()} if step.until else {})
        for step in recorded.steps
    ]
    return {
        "id": request.id,
        "state": recorded.state,
        **request.model_dump(mode="json", exclude={"window"}),
        "window": request.window.key if request.window else None,
        "run": recorded.run,
        "steps": steps,
    }


def _lines(recorded: Recorded) -> list[str]:
    request = recorded.request
    window = request.window.key if request.window else "no window"
    lines = [f"{request.id}  {request.trigger}  {window}  {recorded.state}", f"  {request.reason}"]
    if request.evidence:
        lines.append(f"  {request.evidence}")
    for step in recorded.steps:
        run = f" [{step.run}]" if step.run else ""
        lines.append(f"  {step.at:%Y-%m-%d %H:%M:%S}  {step.told}{run}")
    return lines
