"""Deferred sensors side by side: memory of each in the triggerer, and how soon the data of one leads to its verdict.

In one real Airflow: a pipeline is trained, its continuous monitor waits, and beside it wait so many others that its
triggerer is full. Those are rows of the database as deferred tasks leave them, each in a run of its own, for to defer a
thousand tasks takes a thousand workers. Each looks for a pipeline of its own in one store on the local disk, a third of
them for data, a third for predictions and a third for labels.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from airflow_mlops.call.store import Store
from airflow_mlops.cli.services import Services
from airflow_mlops.registry.ledger import Ledger
from airflow_mlops.registry.verdicts import Verdicts
from airflow_mlops.spec.pipeline import Monitor
from benchmarks.cost import MIB, compiled, python
from benchmarks.data import DAG_FILE
from benchmarks.table import Row, Table

SENSORS = 1000
"""As many as one triggerer takes by Airflow's default."""
POLL = Monitor().poll.total_seconds()
_MOST_MIB, _MOST_SECONDS = 1.0, 10.0
_MODEL = "watched"
_DECLARATION = f"""\
name: {_MODEL}
data: {{source: "data/{{window}}.parquet", target: y, window: month}}
train: {{estimator: sklearn.linear_model.LogisticRegression}}
evaluate: {{plots: false}}
monitor: {{schedule: "@continuous"}}
"""
CROWD = """\
from airflow.sdk import DAG
from airflow.providers.standard.operators.empty import EmptyOperator

with DAG("crowd", schedule=None, is_paused_upon_creation=True):
    EmptyOperator(task_id="sensor")
"""
WINDOW_TRIGGER = "airflow_mlops.triggers.window.WindowTrigger"
DEFER = """
import json, sys
from datetime import datetime, timezone
from airflow.models.serialized_dag import SerializedDagModel
from airflow.models.trigger import Trigger
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState
from airflow.utils.types import DagRunTriggeredByType, DagRunType
from airflow.sdk._shared.module_loading import import_string
trigger_class = import_string(sys.argv[2])
with create_session() as session:
    dag, now = SerializedDagModel.get_dag("crowd", session=session), datetime.now(timezone.utc)
    for each in json.loads(open(sys.argv[1]).read()):
        run = dag.create_dagrun(
            run_id=each["run"], run_after=now, run_type=DagRunType.MANUAL, state=DagRunState.QUEUED,
            triggered_by=DagRunTriggeredByType.TEST, session=session,
        )
        (task,) = run.get_task_instances(session=session)
        trigger = Trigger.from_object(trigger_class(**each["arguments"]))
        session.add(trigger)
        session.flush()
        task.trigger_id, task.state, task.next_method, task.next_kwargs = trigger.id, "deferred", "resume", {}
        session.commit()  # the scheduler gives up where SQLite is locked for long
"""
_RUNNING = """
from airflow.models.trigger import Trigger
from airflow.utils.session import create_session
from sqlalchemy import func, select
with create_session() as session:
    print(session.scalar(select(func.count(Trigger.id)).where(Trigger.triggerer_id.is_not(None))))
"""


def measure(table: Table, home: Path, count: int = SENSORS) -> None:
    """Let so many wait in a real triggerer, and bring the data of one."""
    dags = home / "dags"
    (dags / "data").mkdir(parents=True)
    (dags / "watched.yaml").write_text(_DECLARATION)
    (dags / "watched_dags.py").write_text(DAG_FILE.format(pattern="watched.yaml"))
    (dags / "crowd.py").write_text(CROWD)
    with Services(home, dags, environment=compiled(None)) as services:
        services.start()
        _train(services)
        alone, arguments = memory(services), home / "crowd.json"
        made = enumerate(crowd(home / "crowd", count - 1))
        arguments.write_text(json.dumps([{"run": f"run-{number}", "arguments": each} for number, each in made]))
        python("-c", DEFER, str(arguments), WINDOW_TRIGGER, environment=services.environment)
        services.wait("triggerer", lambda: running(services) == count, 120)
        # Each has looked once and once more.
        time.sleep(3 * POLL)
        before = cpu(services)
        time.sleep(2 * POLL)
        busy = (cpu(services) - before) / (2 * POLL)
        each = (memory(services) - alone) / MIB / (count - 1)
        soon = _verdict_after(services)
        still = running(services)
    if still < count - 1:
        raise RuntimeError(f"{count - 1 - still} fired that had nothing to fire for")
    table.add(
        Row(f"{count:,} deferred sensors: memory of each", f"{each:.3f} MiB", "", "", "< 1 MiB", each < _MOST_MIB)
    )
    table.add(Row("  all of them, waiting", f"{busy:.0%} of a core"))
    table.add(Row("  data comes -> its verdict is kept", f"{soon:.1f} s", "", "", "< 10 s", soon < _MOST_SECONDS))


def crowd(home: Path, count: int) -> list[dict[str, Any]]:
    """What triggers that wait for February are made with; each model's champion was trained on January."""
    store, made = Store(str(home / "store")), []
    for number in range(count):
        name = f"model-{number:04}"
        Ledger(store, name).record(
            "promotion", version="1", champion_before=None, decision="d", reasons=(), run="r", window="2024-01"
        )
        arguments: dict[str, Any] = {"store": store.root, "pipeline": name, "grain": "month", "run": f"{name}/run"}
        predictions = f"{home}/predictions/{name}/window={{window}}/predictions.parquet"
        if number % 3 == 0:
            arguments["source"] = f"{home}/data/{name}/{{window}}.parquet"
        elif number % 3 == 1:
            arguments |= {"sensor": "prediction_drift", "predictions": predictions}
        else:
            labels = f"{home}/labels/{name}/{{window}}.parquet"
            arguments |= {"sensor": "performance", "predictions": predictions, "labels": labels}
        made.append({"arguments": arguments, "poll_interval": POLL})
    return made


def _train(services: Services) -> None:
    """Train on January, and let the monitor wait for February in the triggerer."""
    _arrive(services, "2024-01")
    wanted = {"crowd", f"{_MODEL}.train", f"{_MODEL}.monitor"}
    services.wait("dag-processor", lambda: wanted <= {dag["dag_id"] for dag in dags_of(services)}, 180)
    run = services.trigger(f"{_MODEL}.train", {"window": "2024-01"})
    services.wait("scheduler", lambda: services.runs(f"{_MODEL}.train")[-1]["state"] in ("success", "failed"), 300)
    if Ledger(Store(str(services.store)), _MODEL).champion() is None:
        raise RuntimeError(services.task_log(f"{_MODEL}.train", run, "train"))
    services.wait("triggerer", lambda: running(services) == 1, 120)
    time.sleep(2 * POLL)


def dags_of(services: Services) -> Any:
    return services.airflow("GET", "dags?limit=10")["dags"]


def _arrive(services: Services, month: str) -> None:
    random = np.random.default_rng(int(month[-2:]))
    numbers = random.normal(size=(2000, 4))
    columns: dict[str, Any] = {f"n{index}": numbers[:, index] for index in range(4)}
    file = services.dags / "data" / f".{month}"
    pq.write_table(pa.table({**columns, "y": (numbers[:, 0] + random.normal(size=2000) > 0).astype("int64")}), file)
    file.rename(file.with_name(f"{month}.parquet"))


def _verdict_after(services: Services) -> float:
    """The seconds from the arrival of February to its verdict in the store."""
    verdicts = Verdicts(Store(str(services.store)), _MODEL, "data_drift")
    _arrive(services, "2024-02")
    came = time.monotonic()
    while not verdicts.windows():
        services.check()
        if time.monotonic() - came > 300:
            raise RuntimeError(f"no verdict:\n{services.tail('triggerer')}")
        time.sleep(0.05)
    return time.monotonic() - came


def running(services: Services) -> int:
    return int(python("-c", _RUNNING, environment=services.environment)[1].split()[-1])


def triggerer(services: Services) -> list[psutil.Process]:
    root = psutil.Process(services.pid("triggerer"))
    return [root, *root.children(recursive=True)]


def memory(services: Services) -> int:
    return sum(process.memory_full_info().uss for process in triggerer(services))


def cpu(services: Services) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in triggerer(services))
