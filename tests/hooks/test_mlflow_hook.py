"""The connection type ``mlflow``: addresses, credentials that stay out of every record, and the test button."""

from __future__ import annotations

import base64
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_mlops.errors import RegistryError
from airflow_mlops.hooks import MlflowHook
from airflow_mlops.hooks.mlflow import store_root
from tests import toy
from tests.airflow_fixtures import Airflow
from tests.conftest import free_port

PASSWORD = "s3cret-and-more"


@pytest.fixture(autouse=True)
def _database(airflow_home: Path) -> None:
    """A connection that is not in the environment is looked for in the metadata database."""


def connect(patch: pytest.MonkeyPatch, **fields: Any) -> MlflowHook:
    """A hook on a connection with these fields."""
    patch.setenv("AIRFLOW_CONN_MLFLOW_TEST", json.dumps({"conn_type": "mlflow", **fields}))
    return MlflowHook("mlflow_test")


@pytest.mark.parametrize(
    ("fields", "uri"),
    [
        ({"host": "http://mlflow.example:5000"}, "http://mlflow.example:5000"),
        ({"host": "https://mlflow.example"}, "https://mlflow.example"),
        ({"host": "https://mlflow.example/"}, "https://mlflow.example/"),
        ({"host": "https://mlflow.example/base"}, "https://mlflow.example/base"),
        ({"host": "mlflow.example"}, "http://mlflow.example"),
        ({"host": "mlflow.example:5000"}, "http://mlflow.example:5000"),
        ({"host": "mlflow.example", "port": 5000}, "http://mlflow.example:5000"),
        ({"host": "mlflow.example", "port": 443, "schema": "https"}, "https://mlflow.example:443"),
        ({"host": "http://mlflow.example", "port": 5000}, "http://mlflow.example:5000"),
        ({"host": "http://mlflow.example/", "port": 5000}, "http://mlflow.example:5000"),
        ({"host": "http://mlflow.example:5000", "port": 80}, "http://mlflow.example:5000"),
        ({"host": "https://mlflow.example/base", "port": 5000}, "https://mlflow.example:5000/base"),
        ({"host": "http://[::1]", "port": 5000}, "http://[::1]:5000"),
        ({"host": "sqlite:////srv/mlflow.db"}, "sqlite:////srv/mlflow.db"),
        ({"host": "sqlite:////srv/mlflow.db", "port": 5000}, "sqlite:////srv/mlflow.db"),
    ],
)
def test_the_host_is_a_uri_or_a_name(fields: dict[str, Any], uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert connect(monkeypatch, **fields).uri == uri


def test_an_airflow_uri_serves_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_TEST", f"mlflow://ann:{PASSWORD}@mlflow.example:5000")
    hook = MlflowHook("mlflow_test")
    assert hook.uri == "http://mlflow.example:5000"
    assert hook.environment()["MLFLOW_TRACKING_PASSWORD"] == PASSWORD


def test_credentials_are_environment_variables_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    hook = connect(monkeypatch, host="http://mlflow.example", login="ann", password=PASSWORD)
    given = hook.environment()
    assert (given["MLFLOW_TRACKING_USERNAME"], given["MLFLOW_TRACKING_PASSWORD"]) == ("ann", PASSWORD)
    assert PASSWORD not in hook.registry("toy").model_dump_json()

    token = connect(monkeypatch, host="http://mlflow.example", password=PASSWORD).environment()
    assert token["MLFLOW_TRACKING_TOKEN"] == PASSWORD
    assert "MLFLOW_TRACKING_USERNAME" not in token

    assert not any("TRACKING" in name for name in connect(monkeypatch, host="http://mlflow.example").environment())


@pytest.mark.parametrize("host", [f"http://ann:{PASSWORD}@mlflow.example", f"postgresql://ann:{PASSWORD}@db/mlflow"])
def test_a_password_in_the_host_is_refused_and_not_repeated(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RegistryError, match="holds a password; try: give it as the connection's password") as caught:
        connect(monkeypatch, host=host).registry("toy")
    assert PASSWORD not in str(caught.value)


def test_the_form_s_own_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = connect(monkeypatch, host="http://mlflow.example")
    assert plain.environment()["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "30"
    assert plain.registry("toy").ui_url is None
    extra = json.dumps({"ui_url": "https://ml.example", "timeout": 7})
    told = connect(monkeypatch, host="http://mlflow.example", extra=extra)
    assert told.environment()["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "7"
    assert told.registry("toy").ui_url == "https://ml.example"


def test_a_connection_that_is_not_there_or_names_no_host(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RegistryError, match="airflow connections add mlflow_nowhere --conn-type mlflow"):
        _ = MlflowHook("mlflow_nowhere").uri
    with pytest.raises(RegistryError, match="names no tracking server; try: set its host"):
        _ = connect(monkeypatch).uri


def test_the_test_button(mlflow_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert connect(monkeypatch, host=mlflow_server).test_connection() == (True, f"MLflow answers at {mlflow_server}")
    ok, why = connect(monkeypatch, host=f"http://127.0.0.1:{free_port()}").test_connection()
    assert not ok
    assert "does not answer" in why
    ok, why = MlflowHook("mlflow_nowhere").test_connection()
    assert not ok
    assert "airflow connections add" in why


class _Guarded(http.server.BaseHTTPRequestHandler):
    """An MLflow that knows one user, and keeps what it is asked with."""

    seen: list[str | None]

    def do_GET(self) -> None:
        given = self.headers["Authorization"]
        self.seen.append(given)
        right = given == "Basic " + base64.b64encode(f"ann:{PASSWORD}".encode()).decode()
        self.send_response(200 if right else 401)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: Any) -> None:
        """Be quiet."""


@pytest.fixture
def guarded() -> Iterator[tuple[str, list[str | None]]]:
    """A server behind a password: its address and the credentials it was sent."""
    _Guarded.seen = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Guarded)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", _Guarded.seen
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_wrong_password_is_told_and_not_repeated(
    guarded: tuple[str, list[str | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    host, seen = guarded
    assert connect(monkeypatch, host=host, login="ann", password=PASSWORD).test_connection()[0]
    ok, why = connect(monkeypatch, host=host, login="ann", password="wrong-one").test_connection()
    assert not ok
    assert "refuses the credentials (HTTP 401)" in why
    assert "wrong-one" not in why
    assert len(set(seen)) == 2


def test_a_password_is_in_no_record_of_a_run(airflow: Airflow, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"conn_type": "mlflow", "host": airflow.world.registry.uri, "login": "ann", "password": PASSWORD}
    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", json.dumps(fields))
    toy.months(airflow.folder, ("2024-01",))
    airflow.declare()

    run = airflow.test("train", "2024-01")

    assert run.state == "success"
    assert PASSWORD not in json.dumps([[*key, value] for key, value in run.xcom.items()])
    kept = [file for file in Path(airflow.world.store).rglob("*") if file.is_file()]
    assert len(kept) > 8
    assert not [file for file in kept if PASSWORD.encode() in file.read_bytes()]


def test_the_store_s_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_HOME", "/srv/airflow")
    assert store_root("gs://bucket/mlops") == "gs://bucket/mlops"
    assert store_root("/srv/mlops") == "/srv/mlops"
    assert store_root("mlops") == "/srv/airflow/mlops"
    assert store_root() == "/srv/airflow/mlops"
    monkeypatch.setenv("AIRFLOW__AIRFLOW_MLOPS__STORE", "gs://other/mlops")
    assert store_root() == "gs://other/mlops"
