"""Twenty pipelines that train at once on PostgreSQL, Redis and two Celery workers: what each has left, and how long.

And what a task costs in a worker that Celery has forked, with and without the libraries that it imported before.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from airflow_mlops.call.store import Store
from airflow_mlops.cli.services import ServiceError, fetch
from airflow_mlops.registry.ledger import Ledger
from benchmarks.cost import descendants_cpu
from benchmarks.data import EMPTY_DAG, MODEL, write_dag_file, write_rows
from benchmarks.native import Native
from benchmarks.table import Row, Table

PIPELINES = 20
_PARSE_SECONDS, _RUN_SECONDS, _SETTLE_SECONDS, _TASKS = 300, 3600, 3.0, 9
# Each trains another model: an equal one would be found, and not trained again.
_DECLARATION = """\
name: "{model}-{{member}}"
for_each: [{members}]
data: {{source: rows.parquet, target: y}}
train: {{estimator: sklearn.ensemble.HistGradientBoostingClassifier}}
evaluate: {{plots: false}}
"""
_COLD = {"AIRFLOW__CELERY__EXTRA_CELERY_CONFIG": "{}"}


def measure(table: Table, home: Path, rows: int, pipelines: int = PIPELINES, *, cold: bool = True) -> None:
    """Train the fleet, and hold what is left against what was asked.

    Raises:
        ServiceError: when a run fails or is lost, or has done anything twice.
    """
    print(f"\n{pipelines} pipelines at once, {rows:,} rows each, two Celery workers", flush=True)
    # One more, whose training comes first and is measured alone.
    _lay_out(home / "warm" / "dags", rows, pipelines + 1)
    with Native(home / "warm", home / "warm" / "dags") as services:
        services.start(lambda what: print(f"  starting {what}", flush=True))
        _wait_for_dags(services, pipelines + 1)
        warm = _tasks(services, f"{MODEL}-000")
        started = time.monotonic()
        _train(services, pipelines)
        wall = time.monotonic() - started
        table.add(Row(f"{pipelines} trainings at once: lost, failed, done twice", "0", target="0", met=True))
        table.add(Row("  wall, all of them; by training", f"{wall:.0f} s; {wall / pipelines:.1f} s"))
    if not cold:
        table.add(Row("a task in a Celery worker, imports before the fork", f"{warm:.2f} CPU s"))
        return
    _lay_out(home / "cold" / "dags", rows, 1)
    with Native(home / "cold", home / "cold" / "dags", settings=_COLD) as services:
        services.start(lambda what: print(f"  starting {what}", flush=True))
        _wait_for_dags(services, 1)
        table.ratio(
            "a training's task in a Celery worker, imports before the fork / none",
            warm,
            _tasks(services, f"{MODEL}-000"),
            None,
        )


def _lay_out(dags: Path, rows: int, pipelines: int) -> None:
    dags.mkdir(parents=True)
    write_rows(dags / "rows.parquet", rows)
    members = (f'{{member: "{each:03d}", train: {{params: {{max_iter: {50 + each}}}}}}}' for each in range(pipelines))
    (dags / f"{MODEL}.yaml").write_text(_DECLARATION.format(model=MODEL, members=", ".join(members)))
    write_dag_file(dags)
    (dags / "empty.py").write_text(EMPTY_DAG.format(tasks=_TASKS))


def _wait_for_dags(services: Native, pipelines: int) -> None:
    """Wait until every training is there, and let all run."""
    wanted = {"empty", *(f"{MODEL}-{number:03d}.train" for number in range(pipelines))}

    def there() -> bool:
        found = {dag["dag_id"] for dag in services.airflow("GET", "dags?limit=100&dag_id_pattern=train")["dags"]}
        found |= {dag["dag_id"] for dag in services.airflow("GET", "dags?limit=100&dag_id_pattern=empty")["dags"]}
        return wanted <= found

    services.wait("airflow-dag-processor", there, _PARSE_SECONDS)
    for dag_id in wanted:
        services.airflow("PATCH", f"dags/{dag_id}", {"is_paused": False})


def _tasks(services: Native, pipeline: str) -> float:
    """CPU seconds of a task of the first training beyond the start of its worker; empty tasks came before."""
    _run(services, "empty")
    time.sleep(_SETTLE_SECONDS)
    before = _cpu(services)
    states = _run(services, f"{pipeline}.train")
    time.sleep(_SETTLE_SECONDS)
    return (_cpu(services) - before) / len(states)


def _cpu(services: Native) -> float:
    return sum(descendants_cpu(services.pid(worker)) for worker in services.workers)


def _run(services: Native, dag_id: str) -> dict[str, str]:
    run_id = services.trigger(dag_id)
    services.wait("airflow-scheduler", lambda: _state(services, dag_id, run_id) != "", _RUN_SECONDS)
    return services.tasks(dag_id, run_id)


def _state(services: Native, dag_id: str, run_id: str) -> str:
    """How a run ended; empty as long as it goes on.

    Raises:
        ServiceError: when it failed; with its task's log.
    """
    run = services.airflow("GET", f"dags/{dag_id}/dagRuns/{run_id}")
    if run["state"] == "failed":
        failed = [task for task, state in services.tasks(dag_id, run_id).items() if state == "failed"]
        raise ServiceError(f"{dag_id}: {failed} failed:\n{services.task_log(dag_id, run_id, failed[0])}")
    return "success" if run["state"] == "success" else ""


def _train(services: Native, pipelines: int) -> None:
    """Start all trainings at once; then count what they have left."""
    names = [f"{MODEL}-{number:03d}" for number in range(1, pipelines + 1)]
    runs = {name: services.trigger(f"{name}.train") for name in names}
    left = set(names)

    def done() -> bool:
        left.difference_update({name for name in left if _state(services, f"{name}.train", runs[name])})
        return not left

    services.wait("airflow-scheduler", done, _RUN_SECONDS)
    store = Store(str(services.store))
    found = fetch(f"{services.mlflow_url}/api/2.0/mlflow/model-versions/search?max_results=1000", needed=True)
    versions = Counter(each["name"] for each in found["model_versions"])
    for name in names:
        kinds = [entry.kind for entry in Ledger(store, name).entries()]
        if kinds != ["promotion"] or versions[name] != 1:
            raise ServiceError(f"{name}: the ledger says {kinds}, and MLflow has {versions[name]} versions of it")
        tries = services.airflow("GET", f"dags/{name}.train/dagRuns/{runs[name]}/taskInstances?limit=50")
        again = [each["task_id"] for each in tries["task_instances"] if each["try_number"] > 1]
        if again:
            raise ServiceError(f"{name}: {', '.join(again)} needed more than one try")
