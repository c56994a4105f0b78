"""Trials, the log, and what happens when something else is down."""

from __future__ import annotations

import json
import select
import signal
import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from airflow_mlops.call import ArtifactRef
from airflow_mlops.call.dispatch import run
from airflow_mlops.cli.services import free_ports
from airflow_mlops.errors import RegistryUnreachableError
from airflow_mlops.registry import ModelRegistry
from airflow_mlops.spec import performance_node, prediction_drift_node
from airflow_mlops.triggers.window import arrived_predictions
from tests import toy
from tests.serving.client import Reply, Served, ledger, move
from tests.toy import World

IMPATIENT = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "3", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}


@contextmanager
def trial(world: World, share: int) -> Iterator[tuple[str, str]]:
    """The champion, and the other version on trial."""
    champion = str(ledger(world).champion())
    candidate = "1" if champion == "2" else "2"
    move(world, "trial", candidate, f"trial-{time.time_ns()}", share=share, decision=f"t{time.time_ns()}")
    try:
        yield champion, candidate
    finally:
        move(world, "withdrawal", candidate, f"over-{time.time_ns()}", decision=f"w{time.time_ns()}")


def test_a_canary_answers_its_share_and_a_routing_key_always_gets_the_same(served: Served) -> None:
    table = toy.rows("2024-03", 1)
    with trial(served.world, 30) as (champion, candidate):
        served.follows(champion, candidate)
        answered = Counter(served.predict(table).version for _ in range(300))
        assert set(answered) == {champion, candidate}
        # Three standard deviations of 300 draws at 0.3 are 24.
        assert 60 <= answered[candidate] <= 120
        for key in map(str, range(20)):
            assert len({served.predict(table, x_routing_key=key).version for _ in range(3)}) == 1
    served.follows(champion)
    assert {served.predict(table).version for _ in range(30)} == {champion}


def test_a_shadow_is_compared_and_never_returned(served: Served) -> None:
    table = toy.rows("2024-03", 50)
    with trial(served.world, 0) as (champion, candidate):
        served.follows(champion, candidate)
        for _ in range(4):
            assert served.predict(table).version == champion
        served.wait(lambda: served.health()["versions"][candidate]["compared"] == 200)
        disagreements = served.health()["versions"][candidate]["disagreements"]
        assert 0 < disagreements < 200 and disagreements % 4 == 0
    served.follows(champion)


def test_predictions_are_logged_with_what_monitoring_needs(served: Served) -> None:
    table = toy.rows("2024-03", 20)
    reply = served.predict(table, x_request_id="r1")
    served.predict(toy.rows("2024-02", 5), x_request_id="r2")
    served.wait(lambda: served.health()["logged"] == 25)
    logged = served.logged("2024-03")
    assert logged["id"].to_pylist() == table["id"].to_pylist()
    assert logged["at"].to_pylist() == table["at"].to_pylist()
    assert logged["probability"].to_pylist() == reply.body["probabilities"]["1"]
    assert logged["prediction"].to_pylist() == reply.body["predictions"]
    assert logged["input.amount"].to_pylist() == table["amount"].to_pylist()
    for name, value in {
        "request": "r1",
        "model_version": reply.version,
        "role": "champion",
        "window": "2024-03",
        "model": served.world.registry.model,
        "run": f"serving/{served.ready['server']}",
    }.items():
        assert set(logged[name].to_pylist()) == {value}
    # Another window's rows lie in its own partition, and files do not grow in number with every flush.
    assert served.logged("2024-02").num_rows == 5
    for _ in range(3):
        before = served.health()["logged"]
        served.predict(table)
        served.wait(lambda before=before: served.health()["logged"] == before + 20)
    folder = Path(served.world.store, "predictions", served.world.registry.model, "window=2024-03")
    assert len(list(folder.glob(f"served-{served.ready['server']}-*"))) == 1


def test_a_crash_loses_no_more_than_what_was_not_flushed(trained: World) -> None:
    table = toy.rows("2024-03", 10)
    with Served(trained, "--flush", "0.2") as server:
        for _ in range(5):
            server.predict(table)
        server.wait(lambda: server.health()["logged"] == 50)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        time.sleep(1.0)  # the version's process ends by itself when its input does, and writes what it has
        assert server.logged("2024-03").num_rows == 50


def test_while_the_store_is_away_answers_go_on_and_rows_wait(trained: World, tmp_path: Path) -> None:
    target = tmp_path / "predictions"
    target.write_text("a file where a folder belongs")
    table = toy.rows("2024-03", 10)
    with Served(trained, "--flush", "0.2", "--log-to", str(target)) as server:
        assert server.predict(table).status == 200
        told = server.wait(lambda: (found := server.health())["problem"] and found)
        assert told["state"] == "degraded" and "predictions are not logged" in told["problem"]
        assert server.predict(table).status == 200
        target.unlink()
        server.wait(lambda: server.health()["logged"] == 20)
        assert server.health()["state"] == "ok" and server.health()["dropped"] == 0


def test_the_loop_is_closed_with_real_traffic(world: World) -> None:
    """Served rows are what the sensors of predictions and performance judge; a canary's and a shadow's are left out."""
    toy.months(world.folder, ("2024-01", "2024-02"), 2000)
    toy.months(world.folder, ("2024-03",), 2000, shift=2.0)
    monitor = {"prediction_drift": {}, "performance": {"min_labels": 100}}
    declaration = toy.declare(
        world.folder, world.registry.model, monitor=monitor, validate_model={"versus_champion": None}
    )
    toy.run_plan(declaration, "2024-01", "jan", world.store, world.registry)
    with Served(world, "--flush", "0.2") as server:
        for month in ("2024-02", "2024-03"):
            table = toy.rows(month, 2000, shift=2.0 if month == "2024-03" else 0.0).drop_columns(["y"])
            for start in range(0, 2000, 250):
                assert server.predict(table.slice(start, 250)).status == 200
        server.wait(lambda: server.health()["logged"] == 4000)

    def judge(month: str, node: object) -> object:
        return toy.run_monitor(declaration, month, f"judge-{month}", world.store, world.registry, node).verdict

    # By itself a sensor takes a window when nothing was written into it for a while.
    waits = {
        "store": world.store,
        "pipeline": world.registry.model,
        "sensor": "prediction_drift",
        "predictions": f"{world.store}/predictions/{world.registry.model}/window={{window}}/*.parquet",
        "grain": "month",
        "run": "a",
    }
    assert arrived_predictions(**waits, quiet="5m") is None  # type: ignore[arg-type]
    found = arrived_predictions(**waits, quiet="0s")  # type: ignore[arg-type]
    assert found is not None and found.key == "2024-02"
    assert judge("2024-02", prediction_drift_node).status == "ok"
    assert judge("2024-03", prediction_drift_node).status == "drift"
    performance = judge("2024-02", performance_node)
    assert performance.status == "ok", performance.reasons


class Way(socketserver.ThreadingTCPServer):
    """The way to a server, at a port of its own, until it is cut off."""

    allow_reuse_address = True

    def __init__(self, server: str, port: int = 0) -> None:
        parts = urlsplit(server)
        self.far, self.over = (parts.hostname, parts.port), threading.Event()
        super().__init__(("127.0.0.1", port), _Passing)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def __exit__(self, *error: object) -> None:
        self.cut()

    def cut(self) -> None:
        """Refuse connections from now on, and end those that there are."""
        self.over.set()
        self.shutdown()
        self.server_close()

    def again(self) -> Way:
        """The same way, open once more."""
        return Way(f"http://{self.far[0]}:{self.far[1]}", self.server_address[1])


class _Passing(socketserver.BaseRequestHandler):
    """One connection: what either end says is passed on to the other."""

    server: Way

    def handle(self) -> None:
        with socket.create_connection(self.server.far) as far:
            other = {self.request: far, far: self.request}
            while not self.server.over.is_set():
                for end in select.select(list(other), [], [], 0.1)[0]:
                    if not (said := end.recv(1 << 16)):
                        return
                    other[end].sendall(said)


@pytest.fixture
def way(mlflow_server: str) -> Iterator[Way]:
    with Way(mlflow_server) as way:
        yield way


def answered(server: Served, path: str) -> Reply | None:
    """What a server says, when it listens."""
    with suppress(OSError):
        return server.ask("GET", path)
    return None


def test_with_mlflow_down_in_a_promotion_it_serves_what_it_has_and_says_so_and_then_follows(
    way: Way, fresh_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, str(tmp_path / "store"), toy.registry_ref(way.url, fresh_name))
    toy.months(world.folder)
    declaration = toy.declare(world.folder, fresh_name, validate_model={"versus_champion": None})
    for month in ("2024-01", "2024-02"):
        toy.run_plan(declaration, month, month, world.store, world.registry)
    version = ArtifactRef(uri=f"models:/{fresh_name}/1", digest=ledger(world).digest("1"), kind="model_version")
    promotion = toy.make_promotion(world, version, "2", "again")
    project = ModelRegistry.project

    def dying(registry: ModelRegistry) -> dict[str, str]:
        way.cut()
        return project(registry)

    table = toy.rows("2024-03", 5)
    with Served(world, env=IMPATIENT) as server:
        before = server.predict(table)
        # The ledger, which needs no MLflow, says version 1 by then; the aliases do not, nor can it be fetched.
        monkeypatch.setattr(ModelRegistry, "project", dying)
        with pytest.raises(RegistryUnreachableError):
            run(promotion)
        monkeypatch.undo()
        told = server.wait(lambda: "version 1 cannot be loaded" in str((found := server.health())["problem"]) and found)
        assert told["state"] == "degraded"
        after = server.predict(table)
        assert (after.status, after.version, after.body) == (200, "2", before.body)
        server.wait(lambda: "does not answer" in server.health()["mlflow"])
        assert server.ask("GET", "/ping").status == 200
        # Another one that is started meanwhile has nothing to serve, says so, and serves when MLflow is back.
        (port,) = free_ports(1)
        late = Served(world, "--port", str(port), env=IMPATIENT, start=False)
        late.launch()
        late.ready = {"url": f"http://127.0.0.1:{port}"}
        found = late.wait(lambda: answered(late, "/health"))
        assert (found.status, found.body["champion"], found.body["state"]) == (503, None, "degraded")
        assert f"MLflow at {world.registry.uri} does not answer" in found.body["problem"]
        assert late.ask("GET", "/ping").status == 503
        told = late.predict(table)
        assert (told.status, told.body["message"]) == (503, "no model is loaded yet")
        # One that is to serve a version and nothing else is what a gate starts, which must not wait.
        pinned = Served(world, "--version", "1", env=IMPATIENT, start=False)
        pinned.launch()
        assert pinned.process.wait(120) == 1
        assert f"MLflow at {world.registry.uri} does not answer" in pinned.said()
        pinned.stop()
        with way.again():
            late.follows("1")
            assert late.predict(table).version == "1"
            assert late.process.stdout is not None
            assert json.loads(late.process.stdout.readline())["version"] == "1"
            late.stop()
            assert run(promotion).info["version"] == "1"
            server.follows("1")
            assert server.predict(table).version == "1"
            server.wait(lambda: server.health()["state"] == "ok")
            assert toy.state_of(world)["aliases"] == {"champion": "1", "previous": "2"}
    assert [entry.version for entry in ledger(world).entries()] == ["1", "2", "1"]


def test_a_pickle_is_refused_unless_it_is_allowed(world: World) -> None:
    toy.months(world.folder)
    declaration = toy.declare(world.folder, world.registry.model, train={"serialization": "cloudpickle"})
    toy.run_plan(declaration, "2024-01", "jan", world.store, world.registry)
    server = Served(world, start=False)
    server.launch()
    assert server.process.wait(60) == 1
    assert "written with cloudpickle, which runs code when it is read" in server.said()
    assert "--allow-pickle" in server.said()
    server.stop()
    with Served(world, "--allow-pickle") as allowed:
        assert allowed.predict(toy.rows("2024-03", 3)).status == 200


def test_a_model_s_code_that_was_changed_is_refused(world: World) -> None:
    """The digest that the ledger knows is of the code beside the model as well."""
    toy.package(world.folder, "own", "def build(frame):\n    return frame[['amount', 'age']].fillna(0.0)\n")
    toy.months(world.folder)
    declaration = toy.declare(world.folder, world.registry.model, prepare={"features": "own.features:build"})
    outcomes = toy.run_plan(declaration, "2024-01", "jan", world.store, world.registry)
    with Served(world) as server:
        assert server.predict(toy.rows("2024-03", 3)).status == 200
    import mlflow
    import requests

    model = outcomes["train"].outputs["model"].uri.removeprefix("models:/")
    location = mlflow.MlflowClient(world.registry.uri).get_logged_model(model).artifact_location
    base = f"{world.registry.uri}/api/2.0/mlflow-artifacts/artifacts/{location.partition(':/')[2].lstrip('/')}"
    file = f"{base}/code/own/features.py"
    assert "fillna" in requests.get(file, timeout=30).text
    changed = "def build(frame):\n    return frame[['amount', 'age']] * 0.0\n"
    requests.put(file, data=changed, timeout=30).raise_for_status()
    server = Served(world, start=False)
    server.launch()
    assert server.process.wait(60) == 1
    assert "its digest differs" in server.said(), server.said()
    server.stop()
