"""The server over HTTP: its answers, its limits, and that it follows the ledger."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest

from airflow_mlops.call import Store
from airflow_mlops.registry.serving import live
from airflow_mlops.serving.main import listen, reachable
from airflow_mlops.stages.batch_predict import score_rows
from airflow_mlops.stages.model_io import loaded, read_facts
from tests import toy
from tests.serving.client import JSON, Served, ledger, move, payload
from tests.toy import World


def expected(world: World, version: str, table: Any, folder: Path) -> dict[str, list[Any]]:
    """What batch prediction says of rows."""
    api = toy.registry_of(world.store, world.registry).api
    facts = read_facts(api, api.version(world.registry.model, version).run_id)
    with loaded(facts, folder / "model", api) as model:
        return {name: values.to_pylist() for name, values in score_rows(model, table).items()}


def test_it_answers_as_batch_prediction_does(served: Served, tmp_path: Path) -> None:
    table = toy.rows("2024-03", 57)
    reply = served.predict(table, x_request_id="mine")
    assert (reply.status, reply.version, reply.headers["x-request-id"]) == (200, served.ready["version"], "mine")
    wanted = expected(served.world, served.ready["version"], table, tmp_path)
    assert reply.body["predictions"] == wanted["prediction"]
    assert reply.body["probabilities"]["1"] == wanted["probability"]
    assert np.allclose(reply.body["probabilities"]["0"], 1 - np.array(wanted["probability"]), atol=1e-15)


def test_every_form_of_the_protocol_gets_the_same_answer(served_once: Served) -> None:
    table = toy.rows("2024-03", 5).drop_columns(["y", "id", "at"])
    wanted = served_once.predict(table).body
    records = table.to_pylist()
    columns = {name: table[name].to_pylist() for name in table.column_names}
    for body in (
        {"dataframe_records": records},
        {"instances": records},
        {"inputs": columns},
        {"inputs": records},
        {"dataframe_split": {**json.loads(payload(table))["dataframe_split"], "index": [3, 4, 5, 6, 7]}},
    ):
        assert served_once.ask("POST", "/invocations", json.dumps(body), content_type=JSON).body == wanted
    lines = [",".join(table.column_names)]
    for record in records:
        lines.append(",".join("" if value is None else str(value) for value in record.values()))
    assert served_once.ask("POST", "/invocations", "\n".join(lines), content_type="text/csv").body == wanted


def test_mlflow_s_own_client_asks_it(served_once: Served) -> None:
    from mlflow.deployments.openai import OpenAIDeploymentClient  # noqa: F401 - what serves is found by its own package
    from mlflow.pyfunc.scoring_server.client import ScoringServerClient

    parts = served_once.url.rpartition(":")
    client = ScoringServerClient(host=parts[0].removeprefix("http://"), port=parts[2])
    client.wait_server_ready(timeout=10)
    frame = toy.rows("2024-03", 5).to_pandas().drop(columns=["y", "at"])
    said = client.invoke(frame).get_predictions()
    assert len(said) == 5


BAD: list[tuple[bytes, int, str]] = [
    (b"{", 400, "the body is not JSON"),
    (b"[1]", 400, "the body is a list; allowed: an object with one of dataframe_split"),
    (b'{"rows": []}', 400, "unknown key 'rows'"),
    (b'{"inputs": {}, "instances": []}', 400, "exactly one of"),
    (b'{"inputs": {"amount": [1, 2], "age": [1]}}', 400, "different lengths: 1, 2"),
    (b'{"dataframe_split": {"columns": ["amount"], "data": [[1, 2]]}}', 400, "row 0 of 'data' is 2 values"),
    (
        b'{"dataframe_records": [{"amount": 1.0}]}',
        400,
        "missing columns 'age', 'region', 'member'; the model takes amount",
    ),
    (b'{"dataframe_records": []}', 400, "missing column"),
    (b'{"inputs": {"amount": [-Infinity], "age": [1], "region": ["a"], "member": [true]}}', 400, "send null"),
    (
        b'{"inputs": {"amount": ["x"], "age": [1], "region": ["a"], "member": [true]}}',
        400,
        "row 0: 'x' is not a",
    ),
    (
        b'{"inputs": {"amount": [1], "age": [1], "region": [7], "member": [true]}}',
        400,
        "row 0: 7 is not a text",
    ),
    (b'{"inputs": {"amount": [1], "age": [1], "region": ["a"], "member": [1]}}', 400, "row 0: 1 is not true or false"),
    (b'{"inputs": {"amount": [], "age": [], "region": [], "member": []}}', 400, "there are no rows"),
    (b'{"inputs": {}, "params": {"a": 1}}', 400, "takes no 'params'"),
]


@pytest.mark.parametrize(("body", "status", "said"), BAD, ids=[each[2][:30] for each in BAD])
def test_a_bad_request_is_told_what_to_mend(served_once: Served, body: bytes, status: int, said: str) -> None:
    reply = served_once.ask("POST", "/invocations", body, content_type=JSON)
    assert reply.status == status, reply
    assert said in reply.body["message"] and reply.body["error_code"]


@pytest.fixture(scope="module")
def served_once(trained: World) -> Any:
    with Served(trained, "--max-body", "1MB", "--timeout", "2", cold=True) as server:
        yield server
        # Whatever was sent, it serves on.
        assert server.predict(toy.rows("2024-03", 3)).status == 200
        assert server.health()["state"] == "ok"


def test_a_bad_request_among_good_ones_spoils_none(served_once: Served) -> None:
    good, said = payload(toy.rows("2024-03", 3)), Counter[int]()

    def ask(body: str) -> None:
        said[served_once.ask("POST", "/invocations", body, content_type=JSON).status] += 1

    threads = [threading.Thread(target=ask, args=(good if at % 3 else "{",)) for at in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == {200: 20, 400: 10}
    # A client's mistake is no failure of the version.
    (counts,) = served_once.health()["versions"].values()
    assert counts["errors"] == 0


def test_other_types_of_content_are_refused(served_once: Served) -> None:
    assert served_once.ask("POST", "/invocations", b"<a/>", content_type="text/xml").status == 415


def test_a_body_that_is_too_large_is_refused_and_the_client_gets_to_read_why(served_once: Served) -> None:
    # A hundred megabytes, said beforehand and not; none of it is kept.
    reply = served_once.ask("POST", "/invocations", b" " * 100_000_000, content_type=JSON)
    assert reply.status == 413 and "1,000,000 bytes" in reply.body["message"]
    connection = served_once.connect()
    pieces = (b" " * 100_000 for _ in range(1000))
    connection.request("POST", "/invocations", pieces, {"Content-Type": JSON}, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()
    assert psutil.Process(served_once.process.pid).memory_info().rss < 300 << 20


def test_a_client_that_says_nothing_is_let_go(served_once: Served) -> None:
    parts = urlsplit(served_once.url)
    for first, begun in (
        (b"", b""),
        (b"", b"POST /invocations HTTP/1.1\r\nContent-"),
        (b"GET /ping HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /pi"),
    ):
        with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
            connection.sendall(first)
            answer = b""
            while first and not answer.endswith(b"\r\n\r\n\n"):
                answer += connection.recv(4096)
            connection.sendall(begun)
            started = time.monotonic()
            assert connection.recv(4096) == b""
            assert 1 < time.monotonic() - started < 10


def test_a_head_without_end_is_cut_off(served_once: Served) -> None:
    parts = urlsplit(served_once.url)
    for piece in (b"X-More: " + b"a" * 1000 + b"\r\n", b"a" * 1000):
        with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
            connection.sendall(b"GET /ping HTTP/1.1\r\nX-First: ")
            sent = 0
            with pytest.raises(OSError):
                while sent < 50_000_000:
                    connection.sendall(piece * 100)
                    sent += len(piece) * 100
            # What lies in the sockets' own buffers was sent as well.
            assert sent < 20_000_000
    long = {"x_long": "a" * 30_000}
    assert served_once.ask("GET", "/ping", **long).status == 200


@pytest.mark.parametrize(
    "body",
    [b"[" * 200_000, b'"\xff"', b'{"inputs": [NaN, "\\ud800"]}', b'{"\\ud800": NaN}'],
    ids=["nested", "no-utf-8", "surrogate", "name"],
)
def test_no_body_ends_the_process_of_a_version(served_once: Served, body: bytes) -> None:
    before = children_of(served_once)
    assert served_once.ask("POST", "/invocations", body, content_type=JSON).status == 400
    assert children_of(served_once) == before


def children_of(server: Served) -> list[str]:
    return Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()


def test_a_model_that_never_answers_is_ended_and_loaded_again(world: World) -> None:
    source = (
        "import time\n\ndef build(frame):\n    if (frame['age'] == -1).any():\n        time.sleep(600)\n"
        "    if (frame['age'] == -2).any():\n        raise KeyError('nobody is that old')\n"
        "    return frame[['amount', 'age']].fillna(0.0)\n"
    )
    toy.package(world.folder, "slowly", source)
    toy.months(world.folder)
    declaration = toy.declare(world.folder, world.registry.model, prepare={"features": "slowly.features:build"})
    toy.run_plan(declaration, "2024-01", "jan", world.store, world.registry)
    record = {"id": "a", "at": "2024-03-01T00:00:00", "amount": 1.0, "age": 30.0, "region": "a", "member": True}

    def ask(age: float) -> Any:
        body = json.dumps({"instances": [{**record, "age": age}]})
        return server.ask("POST", "/invocations", body, content_type=JSON)

    with Served(world, "--timeout", "1") as server:
        before = children_of(server)
        assert ask(30).status == 200
        # What the model raises is its own fault, and nobody else's.
        failed = ask(-2)
        assert failed.status == 500 and "nobody is that old" in failed.body["message"]
        assert children_of(server) == before
        assert ask(-1).status == 504
        server.wait(lambda: children_of(server) not in (before, []))
        server.wait(lambda: server.health()["state"] == "ok")
        assert ask(30).status == 200


def test_a_client_that_sends_too_slowly_is_let_go(served_once: Served) -> None:
    connection = served_once.connect()
    connection.putrequest("POST", "/invocations")
    connection.putheader("Content-Length", "100")
    connection.endheaders()
    connection.send(b"{")
    started = time.monotonic()
    response = connection.getresponse()
    assert response.status == 408 and time.monotonic() - started < 10
    connection.close()


def test_what_it_says_of_itself(served: Served) -> None:
    version = served.ready["version"]
    served.predict(toy.rows("2024-03", 7))
    assert served.ask("GET", "/ping").status == 200
    from importlib.metadata import version as installed

    told = served.ask("GET", "/version")
    assert (told.body, told.version) == (installed("mlflow"), version)
    health = served.health()
    assert (health["state"], health["champion"], health["mlflow"], health["store"]) == ("ok", version, "ok", "ok")
    metrics = served.ask("GET", "/metrics").body
    assert f'mlops_serving_rows_total{{role="champion",version="{version}"}} 7.0' in metrics
    (beat,) = [each for each in live(Store(served.world.store), served.world.registry.model) if each.url == served.url]
    assert beat.champion == version and beat.server == served.ready["server"]


def test_with_a_key_only_who_has_it_is_answered(trained: World, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("a-key-of-some-length\n")
    with Served(trained, "--api-key-file", str(tmp_path / "key")) as server:
        table = toy.rows("2024-03", 3)
        assert server.predict(table).status == 401
        assert server.predict(table, authorization="Bearer wrong").status == 401
        assert server.predict(table, authorization="Bearer a-key-of-some-length").status == 200
        assert server.predict(table, x_api_key="a-key-of-some-length").status == 200
        assert server.ask("GET", "/metrics").status == 401
        assert server.ask("GET", "/ping").status == 200
        assert "a-key-of-some-length" not in json.dumps(server.health()) + server.said()


def test_it_follows_the_ledger_there_and_back(trained: World) -> None:
    """Swaps under load: no request fails, and each is answered by one version as that version answers."""
    table = toy.rows("2024-03", 4)
    with Served(trained, "--no-log") as server:
        champion = ledger(trained).champion()
        other = "1" if champion == "2" else "2"
        truth: dict[str, Any] = {}
        for version in (other, champion):
            move(trained, "promotion", str(version), f"truth-{version}-{time.time_ns()}", decision=f"d{time.time_ns()}")
            server.follows(str(version))
            truth[str(version)] = server.predict(table).body
        assert truth["1"] != truth["2"]
        wrong: list[Any] = []
        answered = Counter[str]()
        over = threading.Event()

        def load() -> None:
            connection = server.connect()
            body = payload(table)
            while not over.wait(0.03):
                connection.request("POST", "/invocations", body, {"Content-Type": JSON})
                response = connection.getresponse()
                said, version = json.loads(response.read()), response.headers["X-Model-Version"]
                if response.status != 200 or said != truth.get(str(version)):
                    wrong.append((response.status, version, said))
                answered[str(version)] += 1
            connection.close()

        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for swap in range(4):  # a hundred: python -m benchmarks serving
                version = (other, str(champion))[swap % 2]
                move(trained, "promotion", version, f"swap-{swap}-{time.time_ns()}", decision=f"s{time.time_ns()}")
                server.follows(version)
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert wrong == [] and min(answered["1"], answered["2"]) > 20, answered


def test_a_signal_lets_it_answer_and_write_and_leaves_nothing(trained: World) -> None:
    server = Served(trained, "--flush", "60")
    try:
        server.predict(toy.rows("2024-03", 9), x_request_id="last")
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
        assert children
        assert server.stop(signal.SIGTERM) == 0
        assert server.logged("2024-03").num_rows == 9
        assert not [each for each in live(Store(trained.store), trained.registry.model) if each.url == server.url]
        assert not [child for child in children if Path(f"/proc/{child}").exists()]
    finally:
        if server.process.poll() is None:
            server.stop(signal.SIGKILL)


def test_a_version_whose_process_dies_is_there_again_at_once(served: Served) -> None:
    served.predict(toy.rows("2024-03", 2))
    (child,) = Path(f"/proc/{served.process.pid}/task/{served.process.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGKILL)
    assert served.predict(toy.rows("2024-03", 2)).status == 200
    served.wait(lambda: served.health()["state"] == "ok")


def test_nothing_that_was_logged_is_lost_when_a_version_is_loaded_again(served: Served) -> None:
    """By a crash of its process, or because the champion comes back: the server's files are not begun anew."""
    champion = str(ledger(served.world).champion())
    other = "1" if champion == "2" else "2"
    table = toy.rows("2024-03", 10)

    def ask(rows: int) -> None:
        assert served.predict(table).status == 200
        served.wait(lambda: ((told := served.health())["logged"], told["queued"]) == (rows, 0))
        assert served.logged("2024-03").num_rows == rows

    ask(10)
    (child,) = children_of(served)
    os.kill(int(child), signal.SIGKILL)
    ask(20)
    for at, version in enumerate((other, champion)):
        # The last rows of a version that gives way are written as it ends.
        assert served.predict(table).status == 200
        move(served.world, "promotion", version, f"again-{version}-{time.time_ns()}", decision=f"a{time.time_ns()}")
        served.follows(version)
        ask(40 + 20 * at)
    assert served.health()["dropped"] == 0 and served.health()["state"] == "ok"


def test_without_a_champion_it_says_so(world: World) -> None:
    toy.make_version(world, "sha256:a")
    server = Served(world, start=False)
    server.launch()
    assert server.process.wait(60) == 1
    assert "has no ledger of" in server.said()
    server.stop()


def test_a_version_that_the_ledger_does_not_know_is_not_served(trained: World) -> None:
    for options, said in (
        (("--version", "9"), "the ledger of .* does not know version 9"),
        (("--version", "1", "--digest", "sha256:forged"), "its digest differs"),
    ):
        server = Served(trained, *options, start=False)
        server.launch()
        assert server.process.wait(60) == 1
        import re

        assert re.search(said, server.said()), server.said()
        server.stop()


def test_an_answer_waits_for_no_word_about_its_first_piece() -> None:
    """Of a connection that does not say so, the body of each answer comes 40 ms after its head."""
    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        connection, _ = listening.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_port_that_is_taken_is_told(trained: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = Served(trained, "--port", str(taken.getsockname()[1]), start=False)
        server.launch()
        assert server.process.wait(60) == 1
        assert "cannot be had" in server.said() and "--port 0" in server.said()
        server.stop()


def test_a_server_on_every_address_names_one_that_others_can_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    assert reachable("0.0.0.0") == "127.0.0.1"
    assert reachable("192.0.2.1") == "192.0.2.1"
    monkeypatch.setattr(socket, "gethostname", lambda: "no-such-host.invalid")
    assert reachable("0.0.0.0") == "0.0.0.0"
