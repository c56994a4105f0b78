"""``airflow-mlops history``: the ledger of a model, entry by entry."""

from __future__ import annotations

import argparse
import json

from airflow_mlops.cli.where import require_model, store_of
from airflow_mlops.registry.ledger import Entry, Ledger


def show(options: argparse.Namespace) -> int:
    """Print what became of a model's versions, oldest first.

    Raises:
        RegistryError: when the store has no ledger of that name.
    """
    store = store_of(options, options.model)
    require_model(store, options.model)
    entries = Ledger(store, options.model).entries()
    if options.json:
        print(json.dumps([each.model_dump(mode="json", exclude_none=True) for each in entries], indent=2))
        return 0
    for entry in entries:
        print("\n".join(lines_of(entry)))
    return 0


def lines_of(entry: Entry) -> list[str]:
    """An entry in plain words: what it did, why, who or which run wrote it, and by what verdict."""
    lines = [f"#{entry.number}  {entry.at:%Y-%m-%d %H:%M:%S}  {entry.kind}  {entry.told}"]
    lines += [f"  {reason}" for reason in entry.reasons]
    who = f"by {entry.by} in {entry.run}" if entry.by else f"by {entry.run}"
    trained = f", trained up to {entry.window}" if entry.window else ""
    lines.append(f"  {who}{trained}")
    if entry.decision:
        lines.append(f"  verdict {entry.decision}")
    if entry.requests:
        lines.append(f"  answers request {', '.join(entry.requests)}")
    return lines
