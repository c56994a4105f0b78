"""The target ``local``: servers of ``airflow-mlops serve``, wherever they run, which look at the ledger themselves."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import RegistryRef
from airflow_mlops.deployments.endpoint import KEY_VARIABLE, Endpoint
from airflow_mlops.errors import DeploymentError
from airflow_mlops.registry.serving import Serving, live

_LAST_LINES = 12
_TO_END = 10


class LocalDeployment:
    """Servers that write heartbeats into the store and follow the ledger in it."""

    @contextmanager
    def open(
        self,
        registry: RegistryRef,
        store: Store,
        version: str,
        digest: str,
        *,
        seconds: float,
        allow_pickle: bool = False,
    ) -> Iterator[Endpoint]:
        """A server of the one version, in a process of its own, on a free port of the loopback; it ends with it."""
        where = ("--store", store.root, "--registry", registry.uri, *(("--allow-pickle",) if allow_pickle else ()))
        with clean_server(registry.model, version, digest, where, seconds) as endpoint:
            yield endpoint

    def follow(self, registry: RegistryRef, store: Store) -> None:
        """Nothing: servers look at the ledger each second."""

    def live(self, registry: RegistryRef, store: Store) -> list[Serving]:
        """The servers whose heartbeat is fresh."""
        return live(store, registry.model)

    def connect(self, registry: RegistryRef, store: Store, server: Serving) -> Endpoint:
        """Its own address."""
        return Endpoint(server.url)


@contextmanager
def clean_server(model: str, version: str, digest: str, where: Sequence[str], seconds: float) -> Iterator[Endpoint]:
    """A server of one version in a process of its own, on a free port of the loopback, for as long as the scope lasts.

    Args:
        model: the model's name.
        version: the version.
        digest: what its model must be.
        where: the options that say where it is.
        seconds: how long it may take to come up.

    Raises:
        DeploymentError: when it does not; with what it said.
    """
    command = [
        *(sys.executable, "-m", "airflow_mlops", "serve", model, "--version", version, "--digest", digest),
        *("--port", "0", "--no-log", *where),
    ]
    with tempfile.TemporaryFile() as said:
        # A group of its own, so that its scorers end with it; and it asks nobody for a key.
        environment = {name: value for name, value in os.environ.items() if name != KEY_VARIABLE}
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            start_new_session=True,
        )
        try:
            ready = _ready(process, said, version, seconds)
            with Endpoint(ready["url"], size=ready.get("bytes")) as endpoint:
                yield endpoint
        finally:
            _end(process)


def _ready(process: subprocess.Popen[bytes], said: IO[bytes], version: str, seconds: float) -> dict[str, Any]:
    """What a server says on its first line, when it answers."""
    assert process.stdout is not None  # noqa: S101 - a pipe was asked for
    until = time.monotonic() + seconds
    line = b""
    while not line.endswith(b"\n"):
        left = until - time.monotonic()
        readable = left > 0 and select.select([process.stdout], [], [], left)[0]
        more = os.read(process.stdout.fileno(), 1 << 16) if readable else b""
        if not more:
            why = f"is not up after {seconds:.0f} s" if left <= 0 or not readable else "ended before it was up"
            said.seek(0)
            tail = said.read().decode(errors="replace").strip().splitlines()[-_LAST_LINES:]
            raise DeploymentError(f"a server of version {version} {why}: {' | '.join(tail) or 'it said nothing'}")
        line += more
    found: dict[str, Any] = json.loads(line.splitlines()[0])
    return found


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_TO_END)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()
