"""One command: measure, and print a table of what was measured, against what, and whether the target is met."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import drift, fleet, rerun, runs, runtime, sensors, serving, startup, tune, validation, vertex, workers
from benchmarks.table import Table

PARTS = (
    "import",
    "parse",
    "run",
    "airflow",
    "rerun",
    "runtime",
    "validate",
    "tune",
    "drift",
    "sensors",
    "fleet",
    "serving",
    "vertex",
)
ROWS, QUICK_ROWS = 100_000, 5_000
TUNE_ROWS = 5_000


def main() -> int:
    """Measure the parts asked for. The numbers are for people: a target that is missed is no error."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="few rows and few repetitions: only to see that it works")
    parser.add_argument("--rows", type=int, help=f"rows of the data (default: {ROWS:,})")
    parser.add_argument("--full", action="store_true", help="drift also of 100,000,000 rows in 50 files: 15 GB of disk")
    parser.add_argument("--keep", metavar="DIR", type=Path, help="keep data, logs and databases there")
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    parts = options.parts or PARTS
    rows = options.rows or (QUICK_ROWS if options.quick else ROWS)
    # As an exception it ends the servers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    table = Table()
    started = time.monotonic()
    print(f"{os.cpu_count()} CPUs, load {_load()}, {rows:,} rows", flush=True)
    with tempfile.TemporaryDirectory(prefix="airflow-mlops-benchmark-") as temporary:
        home = options.keep.absolute() if options.keep else Path(temporary)
        home.mkdir(parents=True, exist_ok=True)
        if "import" in parts:
            startup.measure_import(table, repeat=3 if options.quick else 15)
        if "parse" in parts:
            startup.measure_parse(table, home / "parse", repeat=1 if options.quick else 5, warm_up=not options.quick)
        if "run" in parts or "airflow" in parts:
            repeat = 1 if options.quick else 3
            bare = runs.measure(table, home / "run", rows, repeat, warm_up=not options.quick, ours="run" in parts)
            if "airflow" in parts:
                workers.measure(table, home / "airflow", home / "run", bare)
        if "runtime" in parts:
            runtime.measure(table, home / "runtime", rows, repeat=1 if options.quick else 5, warm_up=not options.quick)
        if "rerun" in parts:
            rerun.measure(table, home / "rerun", rows, 1 if options.quick else 3)
        if "validate" in parts:
            # Its own number of rows: what it is about is memory.
            many = options.rows or (QUICK_ROWS if options.quick else validation.ROWS)
            validation.measure(table, home / "validate", many)
        if "tune" in parts:
            tune.measure(table, home / "tune", min(rows, TUNE_ROWS), quick=options.quick)
        if "drift" in parts:
            many = options.rows or (QUICK_ROWS if options.quick else drift.ROWS)
            drift.measure(table, home / "drift", many, drift.MANY_ROWS if options.full else 0)
        if "sensors" in parts:
            sensors.measure(table, home / "sensors", 30 if options.quick else sensors.SENSORS)
        if "fleet" in parts:
            # Its own number of rows: what it is about is many at once.
            few = options.rows or QUICK_ROWS
            fleet.measure(table, home / "fleet", few, 3 if options.quick else fleet.PIPELINES, cold=not options.quick)
        if "serving" in parts:
            serving.measure(table, home / "serving", rows, quick=options.quick)
        if "vertex" in parts:
            vertex.measure(table, home / "vertex", 10 if options.quick else vertex.JOBS)
    print(f"\nload {_load()} at the end, after {time.monotonic() - started:.0f} s\n")
    print(table.text())
    return 0


def _load() -> str:
    return " ".join(f"{each:.1f}" for each in os.getloadavg())


if __name__ == "__main__":
    raise SystemExit(main())
