"""Deferred sensors side by side in one event loop, as a triggerer has them: memory of each, and how soon one fires.

Each watches a pipeline of its own in one store on the local disk, a third of them data, a third predictions and a third
labels. What this leaves out: Airflow's own row and log of a trigger, and the worker that judges when one has fired.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.cost import MIB
from benchmarks.table import Row, Table

SENSORS = 1000
_MOST_MIB, _MOST_SECONDS = 1.0, 10.0
_POLL = 5.0


def measure(table: Table, home: Path, count: int = SENSORS, poll: float = _POLL) -> None:
    """Let so many wait, and bring the data of one, in a process of its own."""
    from benchmarks.cost import compiled, python

    home.mkdir(parents=True, exist_ok=True)
    arguments = ("-m", "benchmarks.sensors", str(home), "--count", str(count), "--poll", str(poll))
    root = Path(__file__).parents[1]
    found = json.loads(python(*arguments, environment=compiled(None), cwd=root)[1].splitlines()[-1])
    each, soon = found["bytes"] / MIB / count, found["seconds"]
    table.add(
        Row(f"{count:,} deferred sensors: memory of each", f"{each:.3f} MiB", "", "", "< 1 MiB", each < _MOST_MIB)
    )
    table.add(Row("  data comes -> its trigger fires", f"{soon:.1f} s", "", "", "< 10 s", soon < _MOST_SECONDS))
    table.add(Row("  all of them, waiting", f"{found['cpu']:.1%} of a core"))


def triggers(home: Path, count: int, poll: float) -> list[Any]:
    """Triggers of sensors that wait for February; each model's champion was trained on January."""
    from airflow_mlops.call.store import Store
    from airflow_mlops.registry.ledger import Ledger
    from airflow_mlops.triggers.window import WindowTrigger

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
        made.append(WindowTrigger(arguments, poll))
    return made


async def wait(home: Path, count: int, poll: float) -> dict[str, float]:
    """Let all wait for two intervals, then bring the data of the first."""
    process = psutil.Process()
    triggers(home / "warm", 3, poll)  # what is imported counts for nobody
    before = process.memory_info().rss
    made = triggers(home, count, poll)

    async def first(trigger: Any) -> Any:
        async for event in trigger.run():
            return event.payload
        return None

    tasks = [asyncio.create_task(first(trigger)) for trigger in made]
    spent, started = sum(process.cpu_times()[:2]), time.monotonic()
    await asyncio.sleep(2 * poll)
    busy = (sum(process.cpu_times()[:2]) - spent) / (time.monotonic() - started)
    after = process.memory_info().rss
    file = home / "data" / "model-0000" / "2024-02.parquet"
    file.parent.mkdir(parents=True)
    file.touch()
    came = time.monotonic()
    payload = await asyncio.wait_for(tasks[0], 60)
    seconds = time.monotonic() - came
    if payload != {"window": "2024-02"} or any(task.done() for task in tasks[1:]):
        raise RuntimeError(f"the wrong one fired: {payload}")
    for task in tasks[1:]:
        task.cancel()
    return {"bytes": float(after - before), "seconds": seconds, "cpu": busy}


def main() -> int:
    """Measure in this process, and print it as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sensors", description=__doc__)
    parser.add_argument("home", nargs="?", type=Path, help="where to work (default: a temporary folder, and a table)")
    parser.add_argument("--count", type=int, default=SENSORS)
    parser.add_argument("--poll", type=float, default=_POLL, help="seconds between two looks of each")
    options = parser.parse_args()
    if options.home is None:
        with tempfile.TemporaryDirectory(prefix="airflow-mlops-benchmark-") as home:
            table = Table()
            measure(table, Path(home), options.count, options.poll)
            print(table.text())
        return 0
    print(json.dumps(asyncio.run(wait(options.home, options.count, options.poll))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
