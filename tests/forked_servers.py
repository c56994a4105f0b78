"""Model servers that have their libraries already: all are forked from one process, and so are their scorers.

What a server and its scorer import takes four CPU seconds, and most of them in these tests work for less than one.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import logging
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, NoReturn

import pytest

LIBRARIES = ("airflow_mlops.cli.serve", "airflow_mlops.serving.main", "airflow_mlops.serving.scorer")
LIBRARIES += ("airflow_mlops.cli.main", "airflow_mlops.stages.skops_io", "sklearn.linear_model", "sklearn.pipeline")
ROOT = Path(__file__).parents[1]
_one = threading.Lock()


class Process:
    """A ``python -m MODULE ...`` that somebody else forks, with what a server's starter needs of `subprocess.Popen`."""

    stdout: IO[Any] | None
    returncode: int | None

    def __init__(
        self,
        args: Sequence[str],
        *,
        stdout: int,
        stderr: IO[Any],
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        text: bool = False,
        **_: Any,
    ) -> None:
        self.args, self.stdout, self.returncode = args, None, None
        self._told, telling = os.pipe()
        if stdout == subprocess.PIPE:
            reading, out = os.pipe()
            self.stdout = open(reading, "r" if text else "rb")  # noqa: SIM115 - its user closes it
        else:
            out = os.open(os.devnull, os.O_WRONLY)
        environment = dict(os.environ if env is None else env)
        asked = json.dumps({"args": list(args), "env": environment, "cwd": cwd or os.getcwd()})
        with _one:
            socket.send_fds(_parent(), [asked.encode()], [out, stderr.fileno(), telling])
        os.close(out)
        os.close(telling)
        self.pid = self._hear()

    def _hear(self) -> int:
        text = os.read(self._told, 100)
        assert text, "no process was forked"
        return int(text)

    def poll(self) -> int | None:
        """Its exit code, if it has ended."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, when it has ended."""
        if self.returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(list(self.args), timeout or 0)
            self.returncode = self._hear()
            os.close(self._told)
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


@pytest.fixture(scope="module")
def forked_servers() -> Iterator[None]:
    """What a deployment starts to look at a version is forked as well."""
    from airflow_mlops.deployments import local

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": Process}))
        yield


@cache
def _parent() -> socket.socket:
    """The socket of the process that forks; it ends when the socket does."""
    own, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        words = [sys.executable, "-m", "tests.forked_servers", str(its.fileno())]
        parent = subprocess.Popen(words, cwd=ROOT, pass_fds=[its.fileno()], start_new_session=True)

    def end() -> None:
        own.close()
        parent.wait(30)

    atexit.register(end)
    return own


# ---------------------------------------------------------------------- in the process that forks, and its children


class _Forked(subprocess.Popen[Any]):
    """A process that goes on from here, where another one would begin with an interpreter."""

    def __init__(self, args: Sequence[str], *, env: Mapping[str, str] | None = None, **options: Any) -> None:
        if tuple(args[:2]) == (sys.executable, "-m"):
            # It does not return, so nothing is executed afterwards.
            options["preexec_fn"] = lambda: _become(args[2:], dict(os.environ if env is None else env))
        super().__init__(args, env=env, **options)


def _become(words: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Run a module as ``python -m`` does, and end."""
    gc.freeze()  # what is left of the process before must not be closed once more
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    logging.root.handlers.clear()
    os.environ.clear()
    os.environ.update(environment)
    subprocess.Popen = _Forked  # type: ignore[misc]
    module, sys.argv = words[0], list(words)
    sys.modules.pop(module if module.count(".") else f"{module}.__main__", None)
    code = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _keep(asked: Mapping[str, Any], out: int, err: int, told: int) -> NoReturn:
    """Start a process, and tell its number and in the end its exit code."""
    process = _Forked(
        asked["args"],
        env=asked["env"],
        cwd=asked["cwd"],
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=err,
        start_new_session=True,
    )
    os.close(out)
    os.close(err)
    os.write(told, str(process.pid).encode())
    os.write(told, str(process.wait()).encode())
    os._exit(0)


def _fork(control: socket.socket) -> None:
    for name in LIBRARIES:
        importlib.import_module(name)
    keepers = set()
    while True:
        text, numbers, _, _ = socket.recv_fds(control, 1 << 20, 3)
        if not text:
            break
        if not (pid := os.fork()):
            control.close()
            _keep(json.loads(text), *numbers)
        keepers.add(pid)
        for number in numbers:
            os.close(number)
        keepers -= {pid for pid in keepers if os.waitpid(pid, os.WNOHANG)[0]}
    for pid in keepers:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    _fork(socket.socket(fileno=int(sys.argv[1])))
