"""No secret is written down: not by a whole training with its deployment, not by a server, not by a rollback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import toy
from tests.airflow_fixtures import Airflow
from tests.serving.client import Served

PASSWORD, KEY = "pa55word-of-mlflow", "a-key-that-nobody-writes-down"


def test_passwords_and_keys_stay_where_they_belong(
    airflow: Airflow,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    uri = airflow.world.registry.uri
    connection = {"conn_type": "mlflow", "host": uri, "login": "ann", "password": PASSWORD}
    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", json.dumps(connection))
    monkeypatch.setenv("AIRFLOW_MLOPS_SERVING_KEY", KEY)
    key = tmp_path_factory.mktemp("key") / "key"
    key.write_text(KEY)
    toy.months(airflow.folder)
    airflow.declare(retries=0, validate_model={"versus_champion": None}, deploy={})
    runs = [airflow.run("train", conf={"window": "2024-01"})]
    secrets = {"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": PASSWORD}
    with Served(airflow.world, "--api-key-file", str(key), "--flush", "0.2", env=secrets, cold=True) as server:
        runs.append(airflow.run("train", conf={"window": "2024-02"}))
        reply = server.predict(toy.rows("2024-03", 5), authorization=f"Bearer {KEY}")
        refused = server.predict(toy.rows("2024-03", 5), authorization=f"Bearer {KEY}x")
        assert (reply.status, refused.status) == (200, 401)
        runs.append(airflow.run("rollback", conf={"reason": "wrong prices"}))
        server.wait(lambda: server.health()["logged"] == 5)
        said = [server.said(), json.dumps(server.health()), json.dumps(refused.body)]
        said.append(str(server.ask("GET", "/metrics", authorization=f"Bearer {KEY}").body))
        command = Path(f"/proc/{server.process.pid}/cmdline").read_text()
    assert [run.state for run in runs] == ["success"] * 3, [run.errors for run in runs]
    # The deployment has asked the server with its key, and every stage has asked MLflow with the password.
    assert [entry.kind for entry in airflow.ledger()] == [
        "promotion",
        "promotion",
        "deployment",
        "rollback",
        "deployment",
    ]

    registry = toy.registry_of(airflow.world.store, airflow.world.registry)
    for number in ("1", "2"):
        version = registry.api.version(airflow.name, number)
        said += [str(version), str(registry.api.logged(version.run_id))]
    out, err = capfd.readouterr()
    said += [out, err, caplog.text, command, *(str(run.xcom) for run in runs), *(str(run.events) for run in runs)]
    files = [file for file in Path(airflow.world.store).rglob("*") if file.is_file()]
    assert len(files) > 20
    for secret in (PASSWORD, KEY):
        assert [text[:200] for text in said if secret in text] == []
        assert [file for file in files if secret.encode() in file.read_bytes()] == []
