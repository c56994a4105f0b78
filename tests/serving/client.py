"""A server as its client and its operator see it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from airflow_mlops.call import Store
from airflow_mlops.registry.ledger import Ledger
from airflow_mlops.stages.golden import as_json
from tests import forked, toy
from tests.toy import World

JSON = "application/json"


class Reply(NamedTuple):
    """What came back."""

    status: int
    version: str | None
    body: Any
    headers: dict[str, str]


class Served:
    """``airflow-mlops serve`` as a process of its own; ``cold`` in an interpreter that has imported nothing yet."""

    def __init__(
        self,
        world: World,
        *options: str,
        env: Mapping[str, str] | None = None,
        start: bool = True,
        cold: bool = False,
    ) -> None:
        self.world, self.options, self.env, self.cold = world, options, dict(env or {}), cold
        self.process: subprocess.Popen[str] | forked.Process
        self.ready: dict[str, Any] = {}
        if start:
            try:
                self.start()
            except BaseException:
                self.stop(signal.SIGKILL)
                raise

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self, seconds: float = 120) -> None:
        self.launch()
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], seconds)[0], f"no server: {self.said()}"
        line = self.process.stdout.readline()
        assert line, self.said()
        self.ready = json.loads(line)

    def launch(self) -> None:
        self.errors = (self.world.folder / f"server-{time.time_ns()}.log").open("w+")
        start = subprocess.Popen if self.cold else forked.Process
        self.process = start(
            [
                *(sys.executable, "-m", "airflow_mlops", "serve", self.world.registry.model, "--port", "0"),
                *("--store", self.world.store, "--registry", self.world.registry.uri, *self.options),
            ],
            cwd=str(forked.ROOT),
            env={**os.environ, **self.env},
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            start_new_session=True,
        )

    def said(self) -> str:
        """What it wrote to standard error."""
        return Path(self.errors.name).read_text()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            code = self.process.wait(60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            if self.process.stdout:
                self.process.stdout.close()
            self.errors.close()
        return code

    @property
    def url(self) -> str:
        return str(self.ready["url"])

    def connect(self, timeout: float = 60) -> http.client.HTTPConnection:
        parts = urlsplit(self.url)
        return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)

    def ask(self, method: str, path: str, body: bytes | str | None = None, **headers: str) -> Reply:
        connection = self.connect()
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        try:
            value = json.loads(text)
        except ValueError:
            value = text.decode()
        found = {name.lower(): each for name, each in response.headers.items()}
        return Reply(response.status, found.get("x-model-version"), value, found)

    def predict(self, table: pa.Table, **headers: str) -> Reply:
        """Ask for the predictions of raw rows."""
        return self.ask("POST", "/invocations", payload(table), content_type=JSON, **headers)

    def health(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("GET", "/health").body
        return found

    def wait(self, ready: Callable[[], Any], seconds: float = 90) -> Any:
        until = time.monotonic() + seconds
        while not (found := ready()):
            assert time.monotonic() < until, (self.health(), self.said())
            time.sleep(0.1)
        return found

    def follows(self, version: str, candidate: str | None = None) -> None:
        """Wait until it answers with a version, and a candidate."""

        def there() -> bool:
            told = self.health()
            return (told["champion"], told["candidate"]) == (version, candidate) and bool(told["entry"])

        self.wait(there)

    def logged(self, window: str) -> pa.Table:
        """The rows that it has logged of a window."""
        folder = Path(self.world.store, "predictions", self.world.registry.model, f"window={window}")
        files = sorted(folder.glob(f"served-{self.ready['server']}-*.parquet"))
        return pa.concat_tables([pq.read_table(file) for file in files], promote_options="permissive")


def payload(table: pa.Table) -> str:
    rows = [[as_json(value) for value in row.values()] for row in table.to_pylist()]
    return json.dumps({"dataframe_split": {"columns": table.column_names, "data": rows}})


def ledger(world: World) -> Ledger:
    return Ledger(Store(world.store), world.registry.model)


def move(world: World, kind: str, version: str, run: str, **more: Any) -> None:
    """Write an entry, as a stage would."""
    registry = toy.registry_of(world.store, world.registry)
    digest = registry.api.version(world.registry.model, version).tags["mlops.model_digest"]
    registry.ledger.record(
        kind,  # type: ignore[arg-type]
        version=version,
        champion_before=registry.ledger.champion(),
        model=digest,
        reasons=("by a test",),
        run=run,
        **more,
    )
