"""A whole training run in real LocalExecutor workers: the CPU of its tasks against the bare script."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

from airflow_mlops.cli.services import ServiceError, Services
from benchmarks.cost import MIB, Cost, PeakMemory, compiled, descendants_cpu, python
from benchmarks.data import EMPTY_DAG, MODEL, write_dag_file, write_declaration
from benchmarks.table import Row, Table

MOST = 3.0
PARSE_SECONDS, _RUN_SECONDS, _SETTLE_SECONDS = 180, 600, 2.0


class DagRun(NamedTuple):
    """What a DAG run has cost, and how many tasks it had."""

    cost: Cost
    tasks: int


def measure(table: Table, home: Path, data: Path, bare: Cost) -> None:
    """Run the same pipeline in workers kept warm by Airflow's forkserver, and in workers as Airflow starts them."""
    for warm in (True, False):
        how = "workers from a warm forkserver" if warm else "workers by Airflow's defaults"
        print(f"\na train run in Airflow, {how}", flush=True)
        folder = home / ("warm" if warm else "cold")
        lay_out(folder / "dags", data)
        # The compiled files of the runs before are taken over.
        environment = compiled(
            data / "pycache" if (data / "pycache").exists() else None,
            AIRFLOW__AIRFLOW_MLOPS__STORE=str(folder / "store"),
        )
        with Services(folder, folder / "dags", environment=environment, warm=warm) as services:
            if warm:
                preloaded = services.environment["AIRFLOW__CORE__MP_FORKSERVER_PRELOAD"]
                python("-c", f"import {preloaded}", environment=services.environment)
            services.start()
            services.wait("dag-processor", lambda: parsed(services), PARSE_SECONDS)
            start = run_dag(services, "empty")
            empty = run_dag(services, "empty")
            # One pipeline's run compiles what tasks import; the other's is measured.
            run_dag(services, f"{MODEL}-000.train")
            train = run_dag(services, f"{MODEL}-001.train")
        _report(table, how, train, bare)
        table.ratio(f"  of that Airflow's own: {empty.tasks} tasks that do nothing", empty.cost.cpu, bare.cpu, None)
        table.add(Row("  once: to start the workers", f"{start.cost.cpu - empty.cost.cpu:.2f} CPU s"))


def _report(table: Table, how: str, train: DagRun, bare: Cost) -> None:
    table.ratio(f"train run, {how} / bare script", train.cost.cpu, bare.cpu, MOST)
    table.add(
        Row(
            f"  wall, largest process, {train.tasks} tasks",
            f"{train.cost.wall:.1f} s, {train.cost.rss / MIB:.0f} MiB",
            f"{bare.wall:.1f} s, {bare.rss / MIB:.0f} MiB",
        )
    )


def lay_out(dags: Path, data: Path) -> None:
    """Put two pipelines, their rows and the empty DAG into a DAGs folder."""
    write_declaration(dags, 2)
    write_dag_file(dags)
    (dags / "rows.parquet").hardlink_to(data / "rows.parquet")
    (dags / "empty.py").write_text(EMPTY_DAG.format(tasks=9))


def parsed(services: Services) -> bool:
    """Whether every DAG is there.

    Raises:
        ServiceError: when a DAG file does not load.
    """
    errors = services.airflow("GET", "importErrors?limit=1")["import_errors"]
    if errors:
        raise ServiceError(f"a DAG file does not load:\n{errors[0]['stack_trace']}")
    return len(services.airflow("GET", "dags?limit=10")["dags"]) == 7


def run_dag(services: Services, dag_id: str) -> DagRun:
    """Run a DAG and count what the scheduler's children burn between its start and its end."""
    scheduler = services.pid("scheduler")
    # Let what ended just now be waited for, and be counted before.
    time.sleep(_SETTLE_SECONDS)
    before, started = descendants_cpu(scheduler), time.monotonic()
    with PeakMemory(scheduler) as memory:
        run_id = services.trigger(dag_id)
        services.wait("scheduler", lambda: _state(services, dag_id, run_id) in ("success", "failed"), _RUN_SECONDS)
        wall = time.monotonic() - started
        time.sleep(_SETTLE_SECONDS)
    cpu = descendants_cpu(scheduler) - before
    states = services.tasks(dag_id, run_id)
    wrong = [task for task, state in states.items() if state == "failed"]
    if wrong:
        raise ServiceError(f"{dag_id}: {wrong[0]} failed:\n{services.task_log(dag_id, run_id, wrong[0])}")
    return DagRun(Cost(cpu, wall, memory.largest), len(states))


def _state(services: Services, dag_id: str, run_id: str) -> str:
    return next(str(run["state"]) for run in services.runs(dag_id) if run["dag_run_id"] == run_id)
