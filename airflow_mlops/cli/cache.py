"""``airflow-mlops cache``: what is kept, why a stage would or would not be done again, and what may go."""

from __future__ import annotations

import argparse
from datetime import timedelta
from pathlib import Path

from fsspec.core import url_to_fs

from airflow_mlops.call.cache import CACHED, Entry, entries, look
from airflow_mlops.call.dispatch import STAGES
from airflow_mlops.call.prune import prune
from airflow_mlops.call.store import Store, reaching
from airflow_mlops.call.wire import Outcome
from airflow_mlops.cli.run import call_of, choose_window, code_of, registry_of, store_of
from airflow_mlops.cli.where import choose_declaration
from airflow_mlops.errors import DeclarationError
from airflow_mlops.spec import train_plan
from airflow_mlops.spec.base import parse_duration

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def ls(options: argparse.Namespace, state: Path) -> int:
    """List the entries, newest last."""
    store = Store(store_of(options, state))
    found = sorted(entries(store, options.pipeline), key=lambda each: each[1].at)
    rows = [("PIPELINE", "STAGE", "KEY", "WHEN (UTC)", "SIZE", "RUN")]
    rows += [
        (each.pipeline, stage, each.key[:12], f"{each.at:%Y-%m-%d %H:%M}", _size_of(each, store), each.run)
        for stage, each in found
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def explain(options: argparse.Namespace, state: Path) -> int:
    """Say of each stage whether a run would do it, and why; nothing is run."""
    declaration = choose_declaration(options.file, options.pipeline)
    window = choose_window(declaration, options.window)
    store = Store(store_of(options, state, declaration.pipeline.google))
    registry = registry_of(options, state, declaration.pipeline.name)
    code = code_of(declaration, store)
    outcomes: dict[str, Outcome] = {}
    print(f"{declaration.pipeline.name}, window {window.key if window else 'all rows'}, store {store.root}")
    for node in train_plan(declaration.pipeline):
        waits = [stage for stage, _ in node.inputs.values() if stage not in outcomes]
        if node.stage not in CACHED:
            said = "always runs: it does nothing twice by itself"
        elif not declaration.pipeline.cache:
            said = "runs: the declaration says cache: false"
        elif waits:
            said = f"runs, or hits if {' and '.join(dict.fromkeys(waits))} gives what it gave before"
        else:
            call = call_of(
                declaration, node, outcomes, code=code, window=window, run="", store=store, registry=registry
            )
            looked = look(call, STAGES[call.stage].model_validate(call.params), store)
            said = looked.reason if looked else "runs: what it reads is not there"
            if looked and looked.outcome:
                outcomes[node.stage] = looked.outcome
        print(f"  {node.stage:<15} {said}")
    return 0


def remove(options: argparse.Namespace, state: Path) -> int:
    """Remove old entries, and the artifacts that nothing names any more."""
    try:
        age: timedelta = parse_duration(options.older_than)
    except ValueError as error:
        raise DeclarationError([f"--older-than: {error}"]) from error
    done = prune(Store(store_of(options, state)), age, options.pipeline, dry_run=options.dry_run)
    verb = "would remove" if options.dry_run else "removed"
    print(
        f"{verb} {done.entries} entries, {done.records} records of runs and {done.artifacts} artifacts "
        f"({_readable(done.size)})"
    )
    return 0


def _size_of(entry: Entry, store: Store) -> str:
    total = 0
    for ref in entry.outcome.outputs.values():
        if ref.uri.startswith("models:/"):
            continue
        with reaching(ref.uri):
            fs, path = url_to_fs(ref.uri)
            if not fs.exists(path):
                return "lost"
            total += int(fs.size(path) or 0)
    return _readable(total) if total else "-"


def _readable(size: float) -> str:
    for unit in _UNITS[:-1]:
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.0f} {_UNITS[-1]}"
