"""The model server against ``mlflow models serve`` on the same model, swaps under load, and what a promotion takes.

Both servers run side by side and are asked in turn by the same clients, so that a machine that grows busier counts for
both; ours logs its predictions, and has written them before the other is asked. MLflow's server gives labels alone,
ours the probabilities as well.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from airflow_mlops.call import Call, Outcome, RegistryRef, Store
from airflow_mlops.call.dispatch import run
from airflow_mlops.cli.services import Services, fetch, free_ports
from airflow_mlops.registry import ModelRegistry
from airflow_mlops.stages.golden import as_json
from benchmarks.cost import compiled, python
from benchmarks.data import MODEL, write_declaration, write_rows
from benchmarks.load import Clients, Load
from benchmarks.runs import COMMAND
from benchmarks.table import Row, Table

CELLS = tuple((clients, rows) for clients in (1, 32) for rows in (1, 100))
"""How many clients ask, and how many rows each request has."""
SECONDS, ROUNDS, SWAPS, PROMOTIONS = 12.0, 3, 100, 20
"""A round is longer than the ten seconds between two writings of the predictions."""
_PROMOTION_S = 0.5


class Trained(NamedTuple):
    """A version, and the evidence that promoted it."""

    version: str
    digest: str
    promotion: Call


def measure(table: Table, home: Path, rows: int, *, quick: bool) -> None:
    """Train two versions, the second one better, promote the second again and again, and serve it."""
    seconds, rounds, swaps, promotions = (1.0, 1, 2, 2) if quick else (SECONDS, ROUNDS, SWAPS, PROMOTIONS)
    print(f"\nserving, a model of {rows:,} rows, {rounds} rounds of {seconds:g} s each in turn", flush=True)
    write_rows(home / "rows.parquet", rows)
    environment = compiled(home / "pycache")
    with Services(home, home, environment=environment) as services:
        services.start_mlflow()
        services.wait("mlflow", lambda: fetch(f"{services.mlflow_url}/health") is not None, 120)
        ref = RegistryRef(uri=services.mlflow_url, model=MODEL, experiment=MODEL)
        registry = ModelRegistry(ref, Store(str(home / "store")))
        first, second = (_train(home, registry, environment, iterations) for iterations in (5, 100))
        _promotions(table, registry, second, promotions)
        with _ours(home, registry, environment) as ours:
            with _theirs(home, registry, environment) as theirs:
                _answers(table, home, ours, theirs, seconds, rounds)
            _swaps(table, home, registry, ours, (first, second), swaps)


def _train(home: Path, registry: ModelRegistry, environment: dict[str, str], iterations: int) -> Trained:
    write_declaration(home)
    file = home / f"{MODEL}.yaml"
    file.write_text(file.read_text().replace("max_iter: 100", f"max_iter: {iterations}"))
    where = ("--store", str(home / "store"), "--registry", registry.ref.uri, "--json")
    summary = json.loads(python("-c", COMMAND, "run", str(file), *where, environment=environment)[1])
    assert summary["status"] == "promoted", summary
    stages = {
        name: Outcome.model_validate({field: each[field] for field in Outcome.model_fields if field in each})
        for name, each in summary["stages"].items()
    }
    version = stages["register"].outputs["version"]
    inputs = {"version": version, "decision": stages["validate_model"].outputs["decision"]}
    place = {"store": str(home / "store"), "registry": registry.ref}
    call = Call(pipeline=MODEL, stage="promote", run="", inputs=inputs, **place)
    return Trained(version.uri.rpartition("/")[2], version.digest, call)


def _promotions(table: Table, registry: ModelRegistry, promoted: Trained, count: int) -> None:
    """Whole promotions: the gate computed anew from its evidence, the ledger, the aliases, the run's tags."""
    took = []
    for number in range(count + 1):
        registry.roll_back(reason="once more", run=f"back-{number}")
        started = time.perf_counter()
        run(promoted.promotion.model_copy(update={"run": f"again-{number}"}))
        took.append(time.perf_counter() - started)
    longest = max(took[1:])  # the first one imports what it needs
    what = f"{median(took[1:]):.2f} s, at most {longest:.2f} s"
    table.add(Row(f"a promotion, {count} of them", what, "", "", f"< {_PROMOTION_S} s", longest < _PROMOTION_S))


def _answers(table: Table, home: Path, ours: str, theirs: str, seconds: float, rounds: int) -> None:
    for clients, rows in CELLS:
        body = _body(home, rows)
        own: list[Load] = []
        peer: list[Load] = []
        for _ in range(rounds):
            own.append(Clients(ours, body, clients, seconds).result())
            _wait(lambda: not fetch(f"{ours}/health")["queued"], 60)
            peer.append(Clients(theirs, body, clients, seconds).result())
        failed = sum(each.failed for each in (*own, *peer))
        assert not failed, f"{failed} requests failed"
        what = f"{clients} client{'s' * (clients > 1)}, {rows} row{'s' * (rows > 1)} a request"
        rates = median(each.rate for each in own), median(each.rate for each in peer)
        share = median(mine.rate / its.rate for mine, its in zip(own, peer, strict=True))
        figures = (f"{rates[0]:.0f}/s", f"{rates[1]:.0f}/s", f"{share:.2f}x", ">= 1x", share >= 1)
        table.add(Row(f"{what}: requests", *figures))
        table.ratio(f"{what}: p99", _p99(own), _p99(peer), 1.0, "ms")
    log = fetch(f"{ours}/health")
    table.add(
        Row("predictions logged, dropped", f"{log['logged']:,}, {log['dropped']}", "", "", "0", not log["dropped"])
    )


def _p99(loads: list[Load]) -> float:
    times = sorted(each for load in loads for each in load.times)
    return times[min(len(times) - 1, len(times) * 99 // 100)] * 1000


def _swaps(
    table: Table, home: Path, registry: ModelRegistry, url: str, both: tuple[Trained, Trained], count: int
) -> None:
    """Move the champion to and fro under load; each answer is held against what the version that it names says."""
    body = _body(home, 3)
    truth = {}
    for at, each in enumerate((*both, both[0])):
        _move(registry, url, each, f"truth-{at}")
        status, truth[each.version] = _ask(url, body)
        assert status == 200
    assert len(set(truth.values())) == 2
    clients = Clients(url, body, 8, 3600, truth)
    started = time.monotonic()
    for number in range(count):
        _move(registry, url, both[1 - number % 2], f"swap-{number}")
    each_s = (time.monotonic() - started) / count
    found = clients.stop()
    wrong = found.failed + found.mixed
    what = f"{count} swaps under load: failed or mixed answers"
    table.add(Row(what, f"{wrong} of {len(found.times):,}", "", "", "0", wrong == 0 and len(found.versions) == 2))
    table.add(Row("  entry of the ledger -> its version answers", f"{each_s:.1f} s"))


def _move(registry: ModelRegistry, url: str, to: Trained, name: str) -> None:
    champion = registry.ledger.champion()
    registry.ledger.record(
        "promotion", version=to.version, champion_before=champion, model=to.digest, reasons=("a benchmark",), run=name
    )
    _wait(lambda: fetch(f"{url}/health")["champion"] == to.version, 120)


def _body(home: Path, rows: int) -> bytes:
    """A request with so many raw rows."""
    with pq.ParquetFile(home / "rows.parquet") as file:
        batch = next(file.iter_batches(rows)).drop_columns(["y"])
    data = [[as_json(value) for value in row.values()] for row in batch.to_pylist()]
    return json.dumps({"dataframe_split": {"columns": batch.schema.names, "data": data}}).encode()


def _ask(url: str, body: bytes) -> tuple[int, str]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, text


def _ours(home: Path, registry: ModelRegistry, environment: dict[str, str]) -> Any:
    where = ("--store", str(home / "store"), "--registry", registry.ref.uri)
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "airflow_mlops", "serve", MODEL, "--port", str(port)]
    return _server("ours", home, f"http://127.0.0.1:{port}", [*command, *where], environment)


def _theirs(home: Path, registry: ModelRegistry, environment: dict[str, str]) -> Any:
    (port,) = free_ports(1)
    uri = f"models:/{MODEL}@champion"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", uri, "--env-manager", "local"]
    address = ("--host", "127.0.0.1", "--port", str(port))
    environment = {
        **environment,
        "MLFLOW_TRACKING_URI": registry.ref.uri,
        # It starts `uvicorn` by its name.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}",
    }
    return _server("theirs", home, f"http://127.0.0.1:{port}", [*command, *address], environment)


@contextmanager
def _server(name: str, home: Path, url: str, command: list[str], environment: dict[str, str]) -> Iterator[str]:
    """Its address, when it answers."""
    with (home / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=home, start_new_session=True)
    try:
        _wait(lambda: process.poll() is not None or fetch(f"{url}/ping") is not None, 120)
        if process.poll() is not None:
            raise RuntimeError((home / f"{name}.log").read_text()[-2000:])
        yield url
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _wait(ready: Callable[[], Any], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > until:
            raise RuntimeError(f"nothing came of it in {seconds:.0f} s")
        time.sleep(0.05)
