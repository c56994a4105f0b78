"""A stage in a process of its own against the same stage in the worker: what the other process adds."""

from __future__ import annotations

import os
from pathlib import Path
from statistics import median

from airflow_mlops.call import Call, Store
from airflow_mlops.call.store import digest_of_file
from benchmarks.cost import compiled, python
from benchmarks.data import write_rows
from benchmarks.table import Table

MORE_S = 0.5
WORKER = """
import sys
from pathlib import Path
from airflow_mlops.backends import backend_of
from airflow_mlops.call import Call
call = Call.model_validate_json(Path(sys.argv[2]).read_text()).model_copy(update={"run": sys.argv[3]})
backend = backend_of(sys.argv[1])
handle = backend.submit(call, {})
for line in backend.logs(handle):
    pass
backend.collect(handle)
"""


def measure(table: Table, home: Path, rows: int, repeat: int, *, warm_up: bool) -> None:
    """Workers that prepare the rows themselves and workers that let another process do it, in turn."""
    print(f"\na stage in a process of its own, {rows:,} rows, {repeat} pairs of workers", flush=True)
    file = home / "rows.parquet"
    write_rows(file, rows)
    store = Store(str(home / "store"))
    table_of_rows = store.ref("dataset", digest_of_file(file), ".parquet").model_copy(update={"uri": str(file)})
    params = {"target": "y", "split": {"by": "random", "test": 0.2}}
    call = Call(
        pipeline="bench",
        stage="prepare",
        run="",
        inputs={"data": table_of_rows},
        params=params,
        store=store.root,
        cache=False,
    )
    (home / "call.json").write_text(call.model_dump_json())
    environment = compiled(home / "pycache" if warm_up else None, AIRFLOW_MLOPS_RUNTIMES=str(home / "runtimes"))
    own, apart, bare = [], [], []
    for number in range(repeat + 1):
        run = f"{os.getpid()}-{number}"
        own.append(python("-c", WORKER, "local", str(home / "call.json"), f"{run}-a", environment=environment)[0].cpu)
        apart.append(
            python("-c", WORKER, "subprocess", str(home / "call.json"), f"{run}-b", environment=environment)[0].cpu
        )
        bare.append(python("-c", "pass", environment=environment)[0].cpu)
    # The first pair compiles what it imports.
    interpreter = median(bare[1:])
    over = median(each - base for each, base in zip(apart[1:], own[1:], strict=True))
    peer = median(own[1:]) + interpreter
    table.difference(
        "a stage in another process / in the worker and an interpreter", peer - interpreter + over, peer, MORE_S
    )
