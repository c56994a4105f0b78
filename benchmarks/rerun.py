"""The same pipeline over the same data once more: what is left to pay when nothing has to be computed."""

from __future__ import annotations

from pathlib import Path

from airflow_mlops.cli.services import Services, fetch
from benchmarks.cost import compiled, python
from benchmarks.data import MODEL, write_declaration, write_rows
from benchmarks.runs import command_run, middle
from benchmarks.table import Table
from benchmarks.workers import PARSE_SECONDS, DagRun, lay_out, parsed, run_dag

MORE_S = 1.5


def measure(table: Table, home: Path, rows: int, repeat: int) -> None:
    """Rerun by ``airflow-mlops run``, and in workers as Airflow starts them and from its warm forkserver."""
    print(f"\nidentical reruns, {rows:,} rows, {repeat} times each", flush=True)
    write_rows(home / "rows.parquet", rows)
    _measure_command(table, home, repeat)
    for warm in (False, True):
        _measure_workers(table, home, repeat, warm=warm)


def _measure_command(table: Table, home: Path, repeat: int) -> None:
    environment = compiled(home / "pycache")
    write_declaration(home)
    with Services(home, home, environment=environment) as services:
        services.start_mlflow()
        services.wait("mlflow", lambda: fetch(f"{services.mlflow_url}/health") is not None, 120)
        command_run(home, home, services.mlflow_url, environment)
        # The first rerun compiles what it imports.
        again = [command_run(home, home, services.mlflow_url, environment) for _ in range(repeat + 1)][1:]
    nothing = middle([python("-c", "pass", environment=environment)[0] for _ in range(repeat)])
    table.difference("airflow-mlops run, rerun / bare interpreter", middle(again).cpu, nothing.cpu, MORE_S)


def _measure_workers(table: Table, home: Path, repeat: int, *, warm: bool) -> None:
    folder = home / ("warm" if warm else "cold")
    lay_out(folder / "dags", home)
    environment = compiled(home / "pycache", AIRFLOW__AIRFLOW_MLOPS__STORE=str(folder / "store"))
    with Services(folder, folder / "dags", environment=environment, warm=warm) as services:
        services.start()
        services.wait("dag-processor", lambda: parsed(services), PARSE_SECONDS)
        run_dag(services, "empty")
        run_dag(services, f"{MODEL}-000.train")
        # The first rerun compiles what it imports.
        run_dag(services, f"{MODEL}-000.train")
        empty, again = [], []
        for _ in range(repeat):
            empty.append(run_dag(services, "empty"))
            again.append(run_dag(services, f"{MODEL}-000.train"))
    how = "a warm forkserver" if warm else "Airflow's defaults"
    what = f"rerun in workers by {how} / {_middle(empty).tasks} empty tasks"
    table.difference(what, _middle(again).cost.cpu, _middle(empty).cost.cpu, MORE_S)


def _middle(runs: list[DagRun]) -> DagRun:
    """The run with the median CPU time."""
    return sorted(runs, key=lambda each: each.cost.cpu)[len(runs) // 2]
