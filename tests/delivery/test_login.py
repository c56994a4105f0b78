"""Who may ask: against Airflow's own API, with its own users, tokens that expire, and one who may only look."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from airflow_mlops.cli.main import main
from airflow_mlops.cli.services import fetch
from airflow_mlops.delivery.airflow import Airflow
from airflow_mlops.delivery.build import build
from airflow_mlops.delivery.login import PASSWORD, TOKEN, USER
from airflow_mlops.delivery.places import StorePlace
from airflow_mlops.delivery.release import deploy
from airflow_mlops.delivery.settings import Target, read_settings
from airflow_mlops.errors import DeclarationError, DeliveryError
from tests.conftest import free_port
from tests.delivery.made import project

PASSWORDS = {"ann": "ann-s3cret", "vic": "vic-s3cret"}
SECONDS = 2
"""How long a token holds."""
# The app that `airflow api-server` serves, after the database was made and has the DAGs of a folder.
SERVER = """
import sys
folder, port = sys.argv[1], int(sys.argv[2])
from airflow.utils.db import upgradedb
upgradedb()
from airflow.dag_processing.bundles.manager import DagBundlesManager
from airflow.dag_processing.dagbag import BundleDagBag, sync_bag_to_db
DagBundlesManager().sync_bundles_to_db()
bag = BundleDagBag(dag_folder=folder, bundle_path=folder, bundle_name="dags-folder")
assert bag.dags and not bag.import_errors, bag.import_errors
sync_bag_to_db(bag, "dags-folder", None)
import uvicorn
uvicorn.run("airflow.api_fastapi.main:app", host="127.0.0.1", port=port, log_level="warning")
"""


class Server(NamedTuple):
    """A real API of Airflow that has loaded one release, and the bundle of it."""

    url: str
    bundle: Path
    log: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Airflow's API for two users, of whom `vic` is a viewer."""
    folder = tmp_path_factory.mktemp("login")
    (folder / "dags").mkdir()
    bundle = build([project(folder / "p")], version="1.0")
    options = {"by": "ann", "source": "x", "timeout": timedelta(minutes=1)}
    deploy(StorePlace(str(folder / "dags")), bundle, "staging", watch=lambda *_: None, **options)  # type: ignore[arg-type]
    (folder / "passwords.json").write_text(json.dumps(PASSWORDS))
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(folder / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(folder / "dags"),
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "ann:admin,vic:viewer",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(folder / "passwords.json"),
        "AIRFLOW__API__SECRET_KEY": "only here",
        "AIRFLOW__API_AUTH__JWT_SECRET": "only here, and long enough for what signs with it, which wants 64 bytes",
        "AIRFLOW__API_AUTH__JWT_EXPIRATION_TIME": str(SECONDS),
        "AIRFLOW__API_AUTH__JWT_LEEWAY": "0",
        "AIRFLOW_API_APPS": "core",
    }
    port = free_port()
    url, log = f"http://127.0.0.1:{port}", folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(folder / "dags"), str(port)],
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        until = time.monotonic() + 180
        while fetch(f"{url}/api/v2/version") is None:
            assert process.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
            time.sleep(0.2)
        yield Server(url, bundle.write(folder), log)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is logged in."""
    for name in list(os.environ):
        if name.startswith("AIRFLOW_API_"):
            monkeypatch.delenv(name)


def token(server: Server, user: str) -> str:
    body = {"username": user, "password": PASSWORDS[user]}
    return str(fetch(f"{server.url}/auth/token", method="POST", body=body, needed=True)["access_token"])


def refusal(server: Server) -> str:
    with pytest.raises(DeliveryError) as caught:
        Airflow(server.url, "staging").ask("GET", "dags")
    return str(caught.value)


def test_a_token_or_a_user_with_a_password_may_ask(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "HTTP 401" in (told := refusal(server)) and "set AIRFLOW_API_TOKEN, or AIRFLOW_API_USER and" in told
    monkeypatch.setenv(TOKEN, token(server, "vic"))
    assert {each["dag_id"] for each in Airflow(server.url, "staging").dags()} >= {"churn.train"}

    # What is said for this environment comes first, from a file as from a variable; a token for all is not mixed in.
    monkeypatch.setenv(TOKEN, "of another environment")
    (tmp_path / "password").write_text(PASSWORDS["ann"] + "\n")
    monkeypatch.setenv(f"{USER}_STAGING", "ann")
    monkeypatch.setenv(f"{PASSWORD}_STAGING_FILE", str(tmp_path / "password"))
    assert list(Airflow(server.url, "staging").dags())
    (tmp_path / "token").write_text(token(server, "ann"))
    monkeypatch.setenv(f"{TOKEN}_STAGING_FILE", str(tmp_path / "token"))
    assert list(Airflow(server.url, "staging").dags())

    # Nor an entry of ~/.netrc, which requests would take for any server of that name.
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password other")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert list(Airflow(server.url, "staging").dags())


def test_a_token_that_expires_is_fetched_anew_for_a_user_and_told_of_otherwise(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(USER, "ann")
    monkeypatch.setenv(PASSWORD, PASSWORDS["ann"])
    lasting = Airflow(server.url, "staging")
    old = token(server, "ann")
    time.sleep(SECONDS + 1)
    assert list(lasting.dags())
    monkeypatch.setenv(TOKEN, old)
    told = refusal(server)
    assert "HTTP 401" in told
    assert "AIRFLOW_API_TOKEN is wrong or has expired: set a new one" in told
    assert old not in told


def test_a_wrong_password_is_told_and_not_shown(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(USER, "ann")
    assert "AIRFLOW_API_USER is set without AIRFLOW_API_PASSWORD" in refusal(server)
    monkeypatch.setenv(f"{PASSWORD}_FILE", "/nowhere/password")
    assert "AIRFLOW_API_PASSWORD_FILE: /nowhere/password cannot be read: No such file" in refusal(server)
    monkeypatch.setenv(PASSWORD, "wr0ng")
    told = refusal(server)
    assert "does not know 'ann' by the password of AIRFLOW_API_PASSWORD" in told
    assert "wr0ng" not in told


def test_what_cannot_log_in_changes_nothing_and_who_may_not_run_it_has_it_put_back(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dags").mkdir()
    target = {"dags": "dags", "airflow": server.url, "smoke": "churn", "timeout": "30s"}
    (tmp_path / "deploy.yaml").write_text(yaml.safe_dump({"environments": {"staging": target}}))
    command = ["deploy", str(server.bundle), "--env", "staging", "--config", str(tmp_path / "deploy.yaml")]
    monkeypatch.setenv(USER, "vic")
    monkeypatch.setenv(PASSWORD, "wr0ng")
    assert main(command) == 1
    assert list((tmp_path / "dags").iterdir()) == []

    monkeypatch.setenv(PASSWORD, PASSWORDS["vic"])
    assert main(command) == 1
    said = capfd.readouterr()
    assert "refuses POST dags/churn.train/dagRuns: HTTP 403".replace("POST ", "POST api/v2/") in said.err
    assert "'vic' needs the permission; who deploys" in said.err
    assert "nothing runs now" in said.err
    assert not (tmp_path / "dags" / "churn_release.py").exists()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"00000001.json", "00000002.json"} <= {path.name for path in written}
    texts = [said.out, said.err, *(path.read_text(errors="replace") for path in written), server.log.read_text()]
    for secret in ("wr0ng", *PASSWORDS.values(), "Bearer", "eyJ"):
        assert not [text for text in texts if secret in text], secret


def test_what_a_server_says_of_a_secret_is_not_told_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that echoes what it was sent."""
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Echo(BaseHTTPRequestHandler):
        def _handle(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            text = f"{self.rfile.read(length).decode()} {self.headers.get('Authorization')}".encode()
            self.send_response(200 if "html" in self.path else 422)
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = _handle

        def log_message(self, *_: object) -> None:
            pass

    echo = HTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=echo.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{echo.server_port}"
    try:
        monkeypatch.setenv(USER, "ann")
        monkeypatch.setenv(PASSWORD, "s3cret")
        with pytest.raises(DeliveryError, match=r"HTTP 422: .*\*\*\*") as caught:
            Airflow(url, "staging")
        assert "s3cret" not in str(caught.value)
        monkeypatch.setenv(TOKEN, "t0ken")
        with pytest.raises(DeliveryError, match=r"HTTP 422: .*\*\*\*") as caught:
            Airflow(url, "staging").ask("GET", "dags")
        assert "t0ken" not in str(caught.value)
        with pytest.raises(DeliveryError, match="is no API of Airflow's, for it says no JSON"):
            Airflow(f"{url}/html", "staging").ask("GET", "dags")
    finally:
        echo.shutdown()
        echo.server_close()


@pytest.mark.parametrize(
    ("target", "secret"),
    [
        ({"dags": "d", "airflow": "https://ann:s3cret@airflow.example.org"}, "s3cret"),
        ({"git": {"repo": "https://s3cret@example.org/dags.git"}, "airflow": "https://a"}, "s3cret"),
        ({"git": {"repo": "ssh://git:s3cret@example.org/dags.git"}, "airflow": "https://a"}, "s3cret"),
    ],
)
def test_an_address_holds_no_secret(tmp_path: Path, target: dict[str, object], secret: str) -> None:
    (tmp_path / "deploy.yaml").write_text(yaml.safe_dump({"environments": {"prod": target}}))
    with pytest.raises(DeclarationError, match=r"deploy\.yaml:\d+: .*holds no user and no password") as caught:
        read_settings(tmp_path / "deploy.yaml")
    assert secret not in str(caught.value)


def test_a_user_of_ssh_is_no_secret() -> None:
    for repo in ("git@example.org:team/dags.git", "ssh://git@example.org/team/dags.git", "/srv/dags.git"):
        assert Target.model_validate({"git": {"repo": repo}, "airflow": "https://a"}).git
