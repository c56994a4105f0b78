"""The flights demo: months arrive, drift is found, retraining starts by itself, and the gate decides.

Nothing in it steers the loop: it puts a month's file where the pipeline looks for it, and watches.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

from airflow_mlops.call.store import Store
from airflow_mlops.cli.services import ServiceError, Services
from airflow_mlops.registry.ledger import Entry, Ledger
from airflow_mlops.registry.requests import Recorded, Requests
from airflow_mlops.registry.verdicts import Verdicts
from airflow_mlops.serving.traffic import send_file

PIPELINE = "flights"
DAGS = ("monitor", "monitor_predictions", "predict", "rollback", "train")
"""What the declaration makes."""
FIRST = ("2013-01", "2013-02")
MONTHS = ("2013-03", "2013-04", "2013-05", "2013-06", "2013-07", "2013-08", "2013-09")
_FILES = ("flights.yaml", "flights_pipeline.py", "flights/__init__.py", "flights/features.py", "flights/schema.yaml")
_TRAIN_SECONDS = 240
_VERDICT_SECONDS = 180


def demo(dags: Path, *, months: int | None = None, keep: Path | None = None) -> int:
    """Run the demo to its end and show what happened; in a terminal, keep the UI up until Ctrl-C.

    Returns:
        0 when the loop ran whole, 1 with the reason and the tail of the right log when it did not.
    """
    if not (dags / "flights" / "data").is_dir():
        print(
            f"{dags} holds no flights data; run this from a checkout, or name its dags folder by --dags",
            file=sys.stderr,
        )
        return 1
    signal.signal(signal.SIGTERM, _interrupt)
    with ExitStack() as stack:
        home = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="airflow-mlops-demo-")))
        home.mkdir(parents=True, exist_ok=True)
        _lay_out(dags, home / "dags")
        services = stack.enter_context(Services(home, home / "dags"))
        run = _Demo(services, dags)
        try:
            run.play(MONTHS[:months])
        except ServiceError as error:
            print(f"\nthe demo stopped: {error}", file=sys.stderr)
            return 1
        run.show()
        if sys.stdin.isatty() and sys.stdout.isatty():
            _stay(services)
        else:
            print("\nThe servers end now, for nobody watches; in a terminal they stay up until Ctrl-C.")
        return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _lay_out(dags: Path, target: Path) -> None:
    for name in _FILES:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(dags / name, target / name)
    (target / "flights" / "data").mkdir(exist_ok=True)


def _stay(services: Services) -> None:
    print(
        f"\nThe servers stay up: Airflow {services.airflow_url}  MLflow {services.mlflow_url}  "
        f"model {services.server_url}\nCtrl-C ends them."
    )
    try:
        while True:
            services.check()
            time.sleep(1)
    except KeyboardInterrupt:
        print("\nending ...")


class _Demo:
    """What the demo does, and what it has seen."""

    def __init__(self, services: Services, dags: Path) -> None:
        self.services, self.dags = services, dags
        self.began = time.monotonic()
        self.store = Store(str(services.store))
        self.ledger, self.requests = Ledger(self.store, PIPELINE), Requests(self.store, PIPELINE)
        self.verdicts = Verdicts(self.store, PIPELINE, "data_drift")
        self.predictions = Verdicts(self.store, PIPELINE, "prediction_drift")
        self.starts: dict[str, float] = {}

    def say(self, line: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self.began), 60)
        print(f"{minutes:02d}:{seconds:02d}  {line}", flush=True)

    def play(self, months: tuple[str, ...]) -> None:
        """Train on the first months, then let the others arrive one by one."""
        services = self.services
        for month in FIRST:
            self._arrive(month)
        self.say("starting MLflow and Airflow")
        services.start(self.say)
        self.say(f"Airflow is up: {services.airflow_url}   MLflow: {services.mlflow_url}")
        services.wait("dag-processor", self._parsed, 120)
        self.say(f"training on {' and '.join(FIRST)}")
        run_id = services.trigger(f"{PIPELINE}.train", {"window": FIRST[-1]})
        self._wait_for_training(run_id)
        entry = self.ledger.entries()[-1]
        self.say(f"  version {entry.version} is the champion: {'; '.join(entry.reasons)}")
        self.say("serving the champion")
        services.start_server(PIPELINE)
        self.say(f"  the model server answers: {services.server_url}")
        for month in months:
            self._month(month)

    def _parsed(self) -> bool:
        found = self.services.airflow("GET", "dags?tags=mlops&limit=10")
        errors = self.services.airflow("GET", "importErrors?limit=1")["import_errors"]
        if errors:
            raise ServiceError(f"the DAG file does not load:\n{errors[0]['stack_trace']}")
        return len(found["dags"]) == len(DAGS)

    def _arrive(self, month: str) -> None:
        target = self.services.dags / "flights" / "data" / f"{month}.parquet"
        beside = target.with_suffix(".arriving")
        shutil.copyfile(self.dags / "flights" / "data" / target.name, beside)
        os.replace(beside, target)

    def _month(self, month: str) -> None:
        """Let a month be asked about and arrive; wait for the verdicts, and for the retraining it leads to."""
        asked = send_file(self.services.server_url, self.dags / "flights" / "data" / f"{month}.parquet")
        answered = ", ".join(f"{count:,} by version {version}" for version, count in sorted(asked.items()))
        self.say(f"{month}: predictions asked for as the flights depart: {answered}")
        self._arrive(month)
        arrived = time.time()
        self.say(f"{month} has arrived")
        self._wait(f"{PIPELINE}.monitor", lambda: bool(self.verdicts.of_window(month)), _VERDICT_SECONDS)
        verdict = self.verdicts.of_window(month)[-1]
        reasons = verdict["reasons"]
        self.say(f"  {verdict['status']}: {'; '.join(reasons[:3])}{' ...' if len(reasons) > 3 else ''}")
        if verdict["status"] == "drift":
            self._retraining(month, arrived)
        monitor = f"{PIPELINE}.monitor_predictions"
        self._wait(monitor, lambda: bool(self.predictions.of_window(month)), _VERDICT_SECONDS)
        said = self.predictions.of_window(month)[-1]
        self.say(f"  predictions: {said['status']}: {'; '.join(said['reasons'][:2])}")

    def _retraining(self, month: str, arrived: float) -> None:
        """Wait for the retraining that a month leads to, and for what serves to follow."""
        self._wait(f"{PIPELINE}.monitor", lambda: self._request(month) is not None, 60)
        self._wait(f"{PIPELINE}.train", lambda: self._claimed(month) is not None, 120)
        run_id = str(self._claimed(month)).partition("/")[2]
        run = next(each for each in self.services.runs(f"{PIPELINE}.train") if each["dag_run_id"] == run_id)
        self.starts[month] = _seconds(run["start_date"]) - arrived
        self.say(f"  retraining started {self.starts[month]:.0f} s after the data had arrived")
        self._wait_for_training(run_id)
        for entry in self.ledger.entries():
            if entry.run == f"{PIPELINE}.train/{run_id}":
                self.say(f"  version {entry.version}: {entry.kind}: {'; '.join(entry.reasons)}")

    def _request(self, month: str) -> Recorded | None:
        for recorded in self.requests.all():
            if recorded.request.window and recorded.request.window.key == month:
                return recorded
        return None

    def _claimed(self, month: str) -> str | None:
        recorded = self._request(month)
        return recorded.run if recorded and recorded.state in ("claimed", "done") else None

    def _wait(self, dag_id: str, ready: Any, seconds: float) -> None:
        """Wait for something to show; a failed task ends the demo with its log."""

        def ready_or_failed() -> bool:
            for run in self.services.runs(dag_id)[-2:]:
                states = self.services.tasks(dag_id, run["dag_run_id"])
                failed = [task for task, state in states.items() if state == "failed"]
                if failed:
                    log = self.services.task_log(dag_id, run["dag_run_id"], failed[0])
                    raise ServiceError(f"{dag_id}: the task {failed[0]} failed:\n{log}")
            return bool(ready())

        self.services.wait("scheduler", ready_or_failed, seconds)

    def _wait_for_training(self, run_id: str) -> None:
        dag_id, seen = f"{PIPELINE}.train", set()

        def ended() -> bool:
            for task, state in self.services.tasks(dag_id, run_id).items():
                if state in ("success", "skipped") and task not in seen:
                    seen.add(task)
                    self.say(f"    {task}: {state}")
            runs = {run["dag_run_id"]: run["state"] for run in self.services.runs(dag_id)}
            return runs.get(run_id) in ("success", "failed")

        self._wait(dag_id, ended, _TRAIN_SECONDS)

    def show(self) -> None:
        """Print what happened in each month, and where to look."""
        outcomes = {"promotion": "promoted", "rejection": "rejected"}
        entries = {entry.window: entry for entry in self.ledger.entries() if entry.kind in outcomes}
        rows = [
            (
                *("month", "rows", "data", "moved", "predictions", "request", "champion"),
                *("AUC champion", "AUC challenger", "outcome"),
            )
        ]
        first = self.ledger.entries()[0]
        auc = self._auc(first)[1]
        rows.append((FIRST[-1], "", "", "", "", "", f"- -> {first.champion_after}", "", auc, "promoted"))
        for verdict in self.verdicts.all():
            entry = entries.get(verdict["window"])
            asked = self._request(verdict["window"])
            rows.append(
                (
                    verdict["window"],
                    f"{verdict['rows']:,}",
                    verdict["status"],
                    ", ".join(verdict["moved"]) or "-",
                    said[-1]["status"] if (said := self.predictions.of_window(verdict["window"])) else "-",
                    f"{asked.request.id[:8]} {asked.state}" if asked else "-",
                    f"{entry.champion_before} -> {entry.champion_after}" if entry else str(verdict["champion"]),
                    *(self._auc(entry) if entry else ("-", "-")),
                    outcomes[entry.kind] if entry else "-",
                )
            )
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        print()
        for number, row in enumerate(rows):
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
            if number == 0:
                print("  ".join("-" * width for width in widths))
        if self.starts:
            print(f"\nfrom a month's arrival to the start of its retraining: at most {max(self.starts.values()):.0f} s")
        self._links()

    def _auc(self, entry: Entry) -> tuple[str, str]:
        decision = self.store.fetch_json(self.store.ref("decision", entry.decision, ".json")) if entry.decision else {}
        compared = decision.get("comparison")
        if compared:
            return f"{compared['champion']:.4f}", f"{compared['challenger']:.4f}"
        return "-", f"{decision.get('metrics', {}).get('roc_auc', float('nan')):.4f}"

    def _links(self) -> None:
        base = self.services.airflow_url
        print("\nlinks")
        print(f"  training runs    {base}/dags/{PIPELINE}.train/runs")
        print(f"  monitoring runs  {base}/dags/{PIPELINE}.monitor/runs")
        print(f"  model versions   {self.services.mlflow_url}/#/models/{PIPELINE}")
        print(f"  model server     {self.services.server_url}/health")
        for verdict in self.verdicts.all():
            if verdict.get("report_url"):
                print(f"  report {verdict['window']}   {verdict['report_url']}")


def _seconds(moment: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(moment.replace("Z", "+00:00")).timestamp()
