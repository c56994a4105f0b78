"""A real MLflow server and a real Airflow on this machine, on free loopback ports; all of it ends with the process."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from airflow_mlops.errors import MlopsError

COMPONENTS: dict[str, tuple[str, ...]] = {
    "api-server": (),
    # Their log servers would listen on every interface; on one machine the api-server reads the files.
    "scheduler": ("--skip-serve-logs",),
    "dag-processor": (),
    "triggerer": ("--skip-serve-logs",),
}
_TAIL_LINES = 30
_PRELOAD = (
    "airflow.sdk.execution_time.task_runner",
    "airflow.sdk.execution_time.supervisor",
    "airflow.dag_processing.dagbag",
    "airflow_mlops.factory",
    "airflow_mlops.stages.train",
    "airflow_mlops.stages.evaluate",
    "airflow_mlops.stages.plots",
    "airflow_mlops.stages.monitor",
    "evidently.metrics",
)


class ServiceError(MlopsError):
    """A server did not start, or ended by itself. Its message holds the tail of the right log."""


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Services:
    """Starts servers, waits until they answer, and ends every one of them with its children.

    Args:
        home: where logs and databases go; Airflow's home is ``home/airflow``.
        dags: the DAGs folder.
        environment: further environment variables of every server.
        warm: let Airflow's workers start from a process that has imported Airflow's task runner, the stages and their
            libraries, by Airflow's own ``mp_start_method`` and ``mp_forkserver_preload``.
    """

    def __init__(
        self, home: Path, dags: Path, *, environment: Mapping[str, str] | None = None, warm: bool = True
    ) -> None:
        self.home, self.dags = home.absolute(), dags.absolute()
        self.logs = self.home / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        api, mlflow, server = free_ports(3)
        self.airflow_url, self.mlflow_url = f"http://127.0.0.1:{api}", f"http://127.0.0.1:{mlflow}"
        self.server_url = f"http://127.0.0.1:{server}"
        self.store = self.home / "airflow" / "mlops"
        self.headers: dict[str, str] = {}
        self.environment = {
            **os.environ,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
            "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
            "no_proxy": "127.0.0.1,localhost",
            "AIRFLOW_HOME": str(self.home / "airflow"),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": "4",
            # Everybody on this machine is an administrator, which is why nothing listens beyond loopback.
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.airflow_url}/execution/",
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(api),
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__API__BASE_URL": self.airflow_url,
            "AIRFLOW__API__SECRET_KEY": secrets.token_hex(32),
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
            # As long may a worker take to see that its task's process has ended.
            "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "30",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "AIRFLOW_CONN_MLFLOW_DEFAULT": json.dumps({"conn_type": "mlflow", "host": self.mlflow_url}),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            # Threads of OpenMP that spin while they wait take the cores from the servers beside them.
            "OMP_WAIT_POLICY": "PASSIVE",
            **(environment or {}),
        }
        # Python may be told to keep no compiled files; then each of some fifty processes would compile all of it anew.
        self.environment.pop("PYTHONDONTWRITEBYTECODE", None)
        if warm:
            self.environment |= {
                "AIRFLOW__SCHEDULER__MP_START_METHOD": "forkserver",
                "AIRFLOW__CORE__MP_FORKSERVER_PRELOAD": ",".join(_PRELOAD),
            }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, say: Callable[[str], None] = lambda line: None) -> None:
        """Start everything and wait until all of it is healthy.

        Raises:
            ServiceError: when something does not start; with the tail of its log.
        """
        self.start_mlflow()
        say("preparing Airflow's database")
        self._once("airflow-db", "-m", "airflow", "db", "migrate")
        for component in COMPONENTS:
            self.start_component(component)
        say("waiting for the MLflow server")
        self.wait("mlflow", lambda: fetch(f"{self.mlflow_url}/health") is not None, 120)
        say("waiting for Airflow's api-server, scheduler, dag-processor and triggerer")
        self.wait("api-server", self._healthy, 240)

    def start_mlflow(self) -> None:
        """Start the MLflow server."""
        port = self.mlflow_url.rpartition(":")[2]
        folder = self.home / "mlflow"
        folder.mkdir(exist_ok=True)
        arguments = [
            *("--host", "127.0.0.1", "--port", port, "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
            *("--artifacts-destination", str(folder / "artifacts")),
        ]
        self._start("mlflow", "-m", "mlflow", "server", *arguments)

    def start_component(self, component: str) -> None:
        """Start one of Airflow's processes."""
        self._start(component, "-m", "airflow", component, *COMPONENTS[component])

    def start_server(self, model: str) -> None:
        """Start a model server, which writes its predictions each second, and wait until it answers.

        Raises:
            ServiceError: when it does not.
        """
        port = self.server_url.rpartition(":")[2]
        where = ("--store", str(self.store), "--registry", self.mlflow_url)
        self._start("serving", "-m", "airflow_mlops", "serve", model, "--port", port, "--flush", "1", *where)
        self.wait("serving", lambda: fetch(f"{self.server_url}/ping") is not None, 60)

    def _start(self, name: str, *arguments: str) -> None:
        with (self.logs / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, *arguments],
                env=self.environment,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A group of its own, so that its children can be ended with it.
                start_new_session=True,
            )

    def _once(self, name: str, *arguments: str) -> None:
        with (self.logs / f"{name}.log").open("ab") as log:
            done = subprocess.run(
                [sys.executable, *arguments], env=self.environment, cwd=self.home, stdout=log, stderr=log, check=False
            )
        if done.returncode:
            raise ServiceError(f"{' '.join(arguments[1:])} failed:\n{self.tail(name)}")

    def _healthy(self) -> bool:
        health = fetch(f"{self.airflow_url}/api/v2/monitor/health")
        parts = ("metadatabase", "scheduler", "triggerer", "dag_processor")
        return health is not None and all(health.get(part, {}).get("status") == "healthy" for part in parts)

    def wait(self, name: str, ready: Callable[[], bool], seconds: float) -> None:
        """Wait for something while all servers go on.

        Raises:
            ServiceError: when a server ends, or the time is over.
        """
        until, pause = time.monotonic() + seconds, 0.2
        while not ready():
            self.check()
            if time.monotonic() > until:
                raise ServiceError(f"{name} was not ready after {seconds:.0f} s:\n{self.tail(name)}")
            time.sleep(pause)
            # Who waits for long asks less often: an answer costs the api-server some 20 ms of CPU.
            pause = min(1.0, pause * 1.2)

    def check(self) -> None:
        """See that every server goes on.

        Raises:
            ServiceError: when one has ended.
        """
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise ServiceError(f"{name} ended with exit code {process.returncode}:\n{self.tail(name)}")

    def tail(self, name: str) -> str:
        """The last lines of a server's log."""
        file = self.logs / f"{name}.log"
        if not file.exists():
            return ""
        lines = file.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
        return "\n".join((f"--- {file} ---", *lines))

    def pid(self, name: str) -> int:
        """The process of a server."""
        return self._processes[name].pid

    def pids(self) -> list[int]:
        """The processes of all servers."""
        return [process.pid for process in self._processes.values()]

    def kill(self, name: str, how: signal.Signals = signal.SIGKILL) -> None:
        """End one server with its children."""
        process = self._processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        process.wait()

    def stop(self) -> None:
        """End every server and its children, politely first."""
        groups = {name: process.pid for name, process in self._processes.items()}
        for group in groups.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGTERM)
        until = time.monotonic() + 20
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, until - time.monotonic()))
        for group in groups.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        for process in self._processes.values():
            process.wait()
        self._processes.clear()

    def airflow(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Ask Airflow's public API.

        Airflow's SQLite refuses one of two that write at the same moment, and takes nothing of its change: asked again.
        """
        tries = 5
        while True:
            try:
                url = f"{self.airflow_url}/api/v2/{path}"
                return fetch(url, method=method, body=body, headers=self.headers, needed=True)
            except ServiceError as error:
                tries -= 1
                if not tries or "Database error" not in str(error):
                    raise
                time.sleep(0.5)

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> str:
        """Start a DAG run by hand; return its id."""
        run = self.airflow("POST", f"dags/{dag_id}/dagRuns", {"logical_date": None, "conf": dict(conf or {})})
        return str(run["dag_run_id"])

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """The runs of a DAG, oldest first."""
        found = self.airflow("GET", f"dags/{dag_id}/dagRuns?order_by=run_after&limit=100")
        return list(found["dag_runs"])

    def tasks(self, dag_id: str, run_id: str) -> dict[str, str]:
        """The state of every task of a run."""
        found = self.airflow("GET", f"dags/{dag_id}/dagRuns/{run_id}/taskInstances?limit=200")
        return {each["task_id"]: each["state"] for each in found["task_instances"]}

    def task_log(self, dag_id: str, run_id: str, task_id: str, lines: int = _TAIL_LINES) -> str:
        """The end of a task's log."""
        folder = self.home / "airflow" / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}" / f"task_id={task_id}"
        files = sorted(folder.rglob("*.log")) if folder.exists() else []
        if not files:
            return ""
        shown = []
        for line in files[-1].read_text(errors="replace").splitlines()[-lines:]:
            try:
                shown.append(json.loads(line).get("event", line))
            except ValueError:
                shown.append(line)
        return "\n".join((f"--- {files[-1]} ---", *map(str, shown)))


def fetch(
    url: str,
    *,
    method: str = "GET",
    body: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
    needed: bool = False,
) -> Any:
    """Ask a server on this machine for JSON; None where it does not answer yet.

    Raises:
        ServiceError: with ``needed``, when it does not answer or refuses.
    """
    data = None if body is None else json.dumps(body).encode()
    said = {"Content-Type": "application/json", **(headers or {})}
    request = urllib.request.Request(url, data=data, method=method, headers=said)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as answer:
            text = answer.read().decode()
    except (OSError, urllib.error.URLError) as error:
        if not needed:
            return None
        detail = error.read().decode()[:500] if isinstance(error, urllib.error.HTTPError) else ""
        raise ServiceError(f"{method} {url}: {error} {detail}") from error
    try:
        return json.loads(text) if text else {}
    except ValueError:
        return {"text": text}
