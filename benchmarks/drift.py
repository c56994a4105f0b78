"""Profiles and the decision against Evidently's preset on the same rows, and one pass over very many rows.

CPU is that of the work alone on both sides, imports excluded; ours includes reading the file, Evidently's does not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.cost import compiled, python
from benchmarks.table import Row, Table

ROWS, MORE_ROWS, MANY_ROWS = 1_000_000, 5_000_000, 100_000_000
"""Against Evidently; against Evidently where 400 s and 9 GB are to be had; one pass."""
FILES, SAMPLE = 50, 50_000
NUMBERS, CATEGORIES = 16, 4
RARE = 20
_TIMES = {ROWS: 50, MORE_ROWS: 80}
_MEMORY = """
def finish(**found):
    import json, resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"peak": peak, **found}))
"""
OURS = (
    _MEMORY
    + """
import sys, time
from pathlib import Path
from airflow_mlops.drift.collect import profile_files
from airflow_mlops.drift.decide import decide
from airflow_mlops.drift.profile import DatasetProfile
from airflow_mlops.drift.statistics import new_categories
from airflow_mlops.spec.pipeline import DriftRule
started = time.process_time()
reference = DatasetProfile.from_bytes(Path(sys.argv[1]).read_bytes())
current = profile_files(sys.argv[2:])
decision = decide(reference, current, DriftRule())
cpu = time.process_time() - started
finish(
    cpu=cpu,
    status=decision.status,
    scores={each.column: each.effect for each in decision.columns},
    new=len(new_categories(reference.columns["c0"], current.columns["c0"])),
)
"""
)
REFERENCE = (
    _MEMORY
    + """
import sys, time
from pathlib import Path
from airflow_mlops.drift.collect import profile_files
started = time.process_time()
profile = profile_files(sys.argv[2:])
cpu = time.process_time() - started
data = profile.to_bytes()
Path(sys.argv[1]).write_bytes(data)
finish(cpu=cpu, size=len(data), rows=profile.rows)
"""
)
EVIDENTLY = (
    _MEMORY
    + """
import sys, time, warnings
warnings.filterwarnings("ignore")
import pandas as pd
from evidently import DataDefinition, Dataset, Report
from evidently.presets import DataDriftPreset
reference, current = (pd.read_parquet(file) for file in sys.argv[1:3])
sample = int(sys.argv[3])
if sample:
    reference, current = (each.sample(sample, random_state=0) for each in (reference, current))
names = list(reference)
definition = DataDefinition(
    numerical_columns=[name for name in names if name[0] == "n"],
    categorical_columns=[name for name in names if name[0] == "c"],
)
sides = [Dataset.from_pandas(each, definition) for each in (current, reference)]
started = time.process_time()
snapshot = Report([DataDriftPreset()]).run(*sides)
cpu = time.process_time() - started
found = snapshot.dict()["metrics"][1:]
finish(
    cpu=cpu,
    scores={each["metric_name"].split("column=")[1].split(",")[0]: float(each["value"]) for each in found},
    new=len(set(current["c0"]) - set(reference["c0"])),
)
"""
)
WRITE = """
import sys
from pathlib import Path
from benchmarks.drift import write
for seed, file in enumerate(sys.argv[2:]):
    write(Path(file), int(sys.argv[1]), seed)
print("{}")
"""
READ = (
    _MEMORY
    + """
import sys, time
import pyarrow.parquet as pq
started = time.process_time()
for file in sys.argv[1:]:
    with pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20) as parquet:
        for batch in parquet.iter_batches(131_072):
            pass
finish(cpu=time.process_time() - started)
"""
)


def measure(table: Table, home: Path, rows: int, many: int) -> None:
    """Compare with Evidently on so many rows, and pass over ``many`` in `FILES` files where that is not 0."""
    home.mkdir(parents=True, exist_ok=True)
    environment = compiled(None, PYTHONPATH=str(Path(__file__).parents[1]))

    def work(code: str, *arguments: Any) -> dict[str, Any]:
        _, printed = python("-c", code, *map(str, arguments), environment=environment)
        found: dict[str, Any] = json.loads(printed.splitlines()[-1])
        return found

    _against_evidently(table, home, rows, work)
    if many:
        _one_pass(table, home, many, work)


def _against_evidently(table: Table, home: Path, rows: int, work: Any) -> None:
    files = [home / f"{side}-{rows}.parquet" for side in ("reference", "current")]
    # Not by this process: its children would begin with the memory that it takes.
    work(WRITE, rows, *files)
    saved = home / "reference.profile"
    made = work(REFERENCE, saved, files[0])
    ours, peer = work(OURS, saved, files[1]), work(EVIDENTLY, *files, 0)
    what = f"drift of {rows:,} rows x 20"
    times = peer["cpu"] / ours["cpu"]
    target = _TIMES.get(rows)
    table.add(
        Row(
            f"{what}, a saved reference / Evidently's preset",
            f"{ours['cpu']:.2f} CPU s",
            f"{peer['cpu']:.1f} CPU s",
            f"{times:.0f} times less",
            f">= {target} times" if target else "",
            times >= target if target else None,
        )
    )
    table.add(
        Row(
            f"{what}, memory", f"{ours['peak']:.0f} MiB", f"{peer['peak']:.0f} MiB", "", "< 350 MiB", ours["peak"] < 350
        )
    )
    for method, names in (("Wasserstein", "n"), ("Jensen-Shannon", "c")):
        error = _error(ours["scores"], peer["scores"], names)
        table.add(Row(f"{what}, {method} against Evidently's", f"{error:.1e}", "", "", "<= 1e-5", error <= 1e-5))
    table.add(Row(f"profile of {rows:,} rows x 20", f"{made['cpu']:.2f} CPU s", "", f"{made['size'] / 1024:.0f} KiB"))
    if rows > SAMPLE:
        sampled = work(EVIDENTLY, *files, SAMPLE)
        error = _error(sampled["scores"], peer["scores"], "nc")
        table.add(
            Row(
                f"Evidently on {SAMPLE:,} sampled rows",
                f"{ours['cpu']:.2f} CPU s",
                f"{sampled['cpu']:.1f} CPU s",
                f"its scores are off by up to {error:.3f}; it sees {sampled['new']} of {ours['new']} new categories",
            )
        )


def _error(one: dict[str, float], other: dict[str, float], kinds: str) -> float:
    return max(abs(one[name] - other[name]) for name in one if name[0] in kinds)


def _one_pass(table: Table, home: Path, rows: int, work: Any) -> None:
    files = [home / f"part-{rows}-{each:02d}.parquet" for each in range(FILES)]
    work(WRITE, rows // FILES, *files)
    ours, read = work(REFERENCE, home / "many.profile", *files), work(READ, *files)
    what = f"profile of {ours['rows']:,} rows x 20 in {FILES} files"
    table.ratio(f"{what} / merely reading them", ours["cpu"], read["cpu"], 4)
    table.add(
        Row(
            f"{what}, memory", f"{ours['peak']:.0f} MiB", f"{read['peak']:.0f} MiB", "", "< 500 MiB", ours["peak"] < 500
        )
    )


def write(file: Path, rows: int, seed: int) -> None:
    """Twenty columns of usual kinds; of every other seed some moved, and 20 rare categories are new in one."""
    if file.exists():
        return
    random, moved = np.random.default_rng(seed), seed % 2
    beside, written = file.with_suffix(".part"), 0
    writer = None
    while written < rows:
        count = min(rows - written, 500_000)
        columns: dict[str, Any] = {}
        for each in range(NUMBERS):
            values = (
                random.standard_normal(count),
                random.lognormal(3, 1, count),
                random.integers(0, 10 ** (2 + each // 4), count).astype(float),
                random.standard_t(3, count),
            )[each % 4]
            columns[f"n{each:02d}"] = values + 0.05 * moved * (each % 3 == 0)
        for each in range(CATEGORIES):
            codes = np.minimum(random.geometric(0.05 + 0.005 * moved * each, count), 100)
            names = np.array([f"level-{code:03d}" for code in range(101)], dtype=object)
            columns[f"c{each}"] = names[codes]
        if moved and not written:
            # Ten rows each: codes of a new kind of fraud, say.
            columns["c0"][: 10 * RARE] = np.repeat([f"new-{each:02d}" for each in range(RARE)], 10)[:count]
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(beside, table.schema)
        writer.write_table(table)
        written += count
    assert writer is not None
    writer.close()
    beside.rename(file)
