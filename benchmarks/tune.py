"""A study of 50 trials whose worker is killed in the middle, and what a study costs beside bare Optuna."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import Call, RegistryRef
from airflow_mlops.cli.services import Services, fetch
from airflow_mlops.stages.tables import write_table
from benchmarks.cost import compiled, python
from benchmarks.data import write_rows
from benchmarks.table import Row, Table

TRIALS = 50
RUN = """
import sys
from pathlib import Path
from airflow_mlops.call import Call
from airflow_mlops.call.dispatch import run
print(run(Call.model_validate_json(Path(sys.argv[1]).read_text())).model_dump_json())
"""
FOUND = """
import collections, json, sys
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
trials = optuna.load_study(study_name="study", storage=JournalStorage(JournalFileBackend(sys.argv[1]))).trials
print(json.dumps(collections.Counter(trial.state.name for trial in trials)))
"""


def measure(table: Table, home: Path, rows: int, *, quick: bool) -> None:
    """Kill a study once half of its trials are done, let it go on, and count; then compare whole studies."""
    trials = 8 if quick else TRIALS
    print(f"\na study of {trials} trials, {rows:,} rows", flush=True)
    write_rows(home / "rows.parquet", rows)
    environment = compiled(home / "pycache")
    with Services(home, home, environment=environment) as services:
        services.start_mlflow()
        services.wait("mlflow", lambda: fetch(f"{services.mlflow_url}/health") is not None, 120)
        uri = services.mlflow_url
        done = _kill_in_the_middle(_call(home, uri, "killed", trials), environment, trials)
        (journal,) = (home / "killed" / "studies").rglob("*.journal")
        _, printed = python("-c", RUN, str(_call(home, uri, "killed", trials)), environment=environment)
        best = json.loads(printed.splitlines()[-1])["metrics"]["roc_auc"]
        _, counted = python("-c", FOUND, str(journal), environment=environment)
        states = json.loads(counted.splitlines()[-1])
        ours, printed = python("-c", RUN, str(_call(home, uri, "whole", trials)), environment=environment)
        whole = json.loads(printed.splitlines()[-1])["metrics"]["roc_auc"]
        script = str(Path(__file__).with_name("bare_tune.py"))
        peer, _ = python(script, str(home / "rows.parquet"), uri, "bare", str(trials), environment=environment)
    kept = f"{states.get('COMPLETE', 0)} complete, {sum(states.values())} in all"
    table.add(
        Row(
            f"{trials} trials, SIGKILL after {done}",
            kept,
            f"{trials}",
            "none lost or doubled",
            f"= {trials}",
            states == {"COMPLETE": trials},
        )
    )
    table.add(Row("  best value, against a study that nobody killed", f"{best:.6f}", f"{whole:.6f}", met=best == whole))
    table.difference(f"a study of {trials} trials / bare Optuna", ours.cpu, peer.cpu, None)


def _call(home: Path, uri: str, name: str, trials: int) -> Path:
    """The Call of a tuning, as a file."""
    store = Store(str(home / name))
    call = Call(
        pipeline="bench",
        stage="tune",
        run=name,
        inputs={"train": write_table(pq.read_table(home / "rows.parquet"), store)},
        params={
            "target": "y",
            "estimator": "sklearn.ensemble.HistGradientBoostingClassifier",
            "model_params": {"max_iter": 30},
            "space": {
                "learning_rate": {"low": 0.01, "high": 0.3, "log": True},
                "max_leaf_nodes": {"low": 7, "high": 31},
            },
            "trials": trials,
        },
        store=store.root,
        registry=RegistryRef(uri=uri, model=f"bench-{name}", experiment=f"bench-{name}"),
    )
    file = home / f"{name}.json"
    file.write_text(call.model_dump_json())
    return file


def _kill_in_the_middle(call: Path, environment: dict[str, str], trials: int) -> int:
    """Start a study, kill it with SIGKILL while it is in the middle; return how many trials were done by then."""
    folder = call.with_suffix("") / "studies"
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(call)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    done = 0
    while done < trials // 2:
        if process.poll() is not None:
            raise RuntimeError((process.stderr.read() if process.stderr else b"").decode()[-3000:])
        time.sleep(0.01)
        for journal in folder.rglob("*.journal"):
            # The line that ends a trial holds its state, 1 for complete.
            done = journal.read_bytes().count(b'"state":1')
    process.send_signal(signal.SIGKILL)
    process.wait()
    if process.stderr:
        process.stderr.close()
    return done
