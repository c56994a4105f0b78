"""``python`` and ``airflow-mlops`` in processes of their own that have their libraries: all are forked from one.

To import what a whole run needs takes five CPU seconds, and a model server with its scorer four; most of them work for
less than one in these tests.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import logging
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, NoReturn

import pytest

from tests import asking

OURS = (
    "airflow_mlops.cli.run",
    "airflow_mlops.cli.serve",
    "airflow_mlops.google.job",
    "airflow_mlops.serving.main",
    "airflow_mlops.serving.scorer",
    *(
        f"airflow_mlops.stages.{name}"
        for name in ("extract", "validate_data", "prepare", "tune", "train", "evaluate", "plots", "promises", "monitor")
    ),
    "gcsfs",
    "mlflow.sklearn",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store",
    "sklearn.compose",
    "sklearn.linear_model",
)
"""What a run needs from its first stage to its last, a job on Vertex AI, and a model server with its scorer."""
AIRFLOW = ("airflow.sdk", "airflow.dag_processing.dagbag")
"""What has been imported where Airflow parses a DAG file. None of ours has any of it."""
ROOT = Path(__file__).parents[1]
_LONGEST = 1200
_one = threading.Lock()


class Process:
    """A ``python ...`` or ``airflow-mlops ...`` that is forked, with what is used of `subprocess.Popen`.

    It leads a session of its own. Its standard input is empty.
    """

    stdout: IO[Any] | None
    returncode: int | None

    def __init__(
        self,
        args: Sequence[str],
        *,
        stdout: int | IO[Any],
        stderr: int | IO[Any],
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        text: bool = False,
        libraries: tuple[str, ...] = OURS,
        **_: Any,
    ) -> None:
        self.args, self.stdout, self.returncode = args, None, None
        self._reading = threading.Lock()
        with contextlib.ExitStack() as closing:
            nothing = closing.enter_context(open(os.devnull, "r+"))
            if stdout == subprocess.PIPE:
                reading, writing = os.pipe()
                self.stdout = open(reading, "r" if text else "rb")  # noqa: SIM115 - its user closes it
                out: Any = closing.enter_context(open(writing, "wb"))
            else:
                out = nothing if stdout == subprocess.DEVNULL else stdout
            streams = [each if isinstance(each, int) else each.fileno() for each in (nothing, out, stderr)]
            environment = dict(os.environ if env is None else env)
            with _one:
                path = _parent(libraries)
            self._told = asking.ask(path, list(args), str(cwd or os.getcwd()), environment, streams)
        self.pid = int(self._told.readline())

    def poll(self) -> int | None:
        """Its exit code, if it has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, when it has ended; that of a signal is negative."""
        # What comes last closes the way: there is something to read though it was read ahead.
        if self.returncode is None and not select.select([self._told], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(list(self.args), timeout or 0)
        with self._reading:
            if self.returncode is None:
                self.returncode = int(self._told.readline())
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


def command(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``airflow-mlops`` in a folder, to its end."""
    return _run("airflow-mlops", *words, cwd=cwd, environment=environment)


def python(
    *words: str, libraries: tuple[str, ...] = OURS, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``python`` where these libraries are loaded and nothing else, to its end."""
    return _run("python", *words, libraries=libraries, cwd=cwd, environment=environment)


def printed(code: str, *words: str, libraries: tuple[str, ...] = OURS, cwd: Path = ROOT, **environment: str) -> Any:
    """What code prints as JSON in its last line, where these libraries are loaded and nothing else."""
    done = python("-c", code, *words, libraries=libraries, cwd=cwd, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def killed(code: str, *words: str) -> None:
    """Run code that kills its own process."""
    done = python("-c", code, *words)
    assert done.returncode == -signal.SIGKILL, done.stderr


def commands(folder: Path) -> str:
    """The search path for commands with `python` and `airflow-mlops` as they are here before all others."""
    path = _parent(OURS)
    for name in ("python", "airflow-mlops"):
        file = folder / name
        file.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{asking.__file__}" "{path}" {name} "$@"\n')
        file.chmod(0o755)
    return os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])


@pytest.fixture(scope="module")
def forked_servers() -> Iterator[None]:
    """What a deployment starts to look at a version is forked as well."""
    from airflow_mlops.deployments import local

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": Process}))
        yield


def _run(
    *words: str, cwd: Path, environment: Mapping[str, str], libraries: tuple[str, ...] = OURS
) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        env = {**os.environ, **environment}
        code = Process(words, stdout=out, stderr=err, env=env, cwd=cwd, libraries=libraries).wait()
        for stream in (out, err):
            stream.seek(0)
        return subprocess.CompletedProcess(words, code, out.read(), err.read())


@cache
def _parent(libraries: tuple[str, ...]) -> str:
    """The address of the process that has these libraries; it ends with this one."""
    # No TemporaryDirectory: a process that Airflow forks from this one drops its exit functions, which would remove it.
    folder, ours = tempfile.mkdtemp(prefix="forked-"), os.getpid()
    path = os.path.join(folder, "socket")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(100)
        code = f"from tests import forked; forked.serve({listening.fileno()}, {libraries!r})"
        parent = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, pass_fds=[listening.fileno()]
        )

    def end() -> None:
        if os.getpid() == ours:
            parent.communicate()
            shutil.rmtree(folder)

    atexit.register(end)
    return path


# ---------------------------------------------------------------------- in the process that forks, and its children


def serve(number: int, libraries: tuple[str, ...]) -> None:
    """Fork a process for each that asks; tell its number, and in the end its exit code; until standard input ends."""
    for name in libraries:
        importlib.import_module(name)
    if "mlflow" in sys.modules:
        # The first model that a process logs costs more than a second: MLflow looks through all that is installed.
        importlib.import_module("mlflow.utils.requirements_utils")._init_modules_to_packages_map()
    # What a command or a model server starts of ours is forked from it in its turn.
    subprocess.Popen = _Forked  # type: ignore[misc]
    assert threading.active_count() == 1, threading.enumerate()
    gc.freeze()
    listening = socket.socket(fileno=number)
    woken, waking = socket.socketpair()
    waking.setblocking(False)
    signal.set_wakeup_fd(waking.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    asked: dict[int, socket.socket] = {}
    while sys.stdin not in (ready := select.select([listening, sys.stdin, woken], [], [])[0]):
        if woken in ready:
            woken.recv(4096)
        while asked and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            with asked.pop(ended[0]) as asker:
                _tell(asker, os.waitstatus_to_exitcode(ended[1]))
        if listening in ready:
            asker = listening.accept()[0]
            streams = socket.recv_fds(asker, 1, 3)[1]
            with asker.makefile() as told:
                words, cwd, environment = json.loads(told.readline())
            if not (pid := os.fork()):
                os.setsid()
                for stream, its in enumerate(streams):
                    os.dup2(its, stream)
                os.chdir(cwd)
                _become(words, environment)
            for stream in streams:
                os.close(stream)
            asked[pid] = asker
            _tell(asker, pid)


def _tell(asker: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # it may be gone
        asker.sendall(f"{number}\n".encode())


class _Forked(subprocess.Popen[Any]):
    """A process that goes on from here, where another one would begin with an interpreter."""

    def __init__(self, args: Sequence[str], *, env: Mapping[str, str] | None = None, **options: Any) -> None:
        if tuple(args[:2]) == (sys.executable, "-m") and args[2].startswith("airflow_mlops"):

            def go_on() -> NoReturn:
                # It does not return, so nothing is executed afterwards. What its parent does at its end, it does not.
                atexit._clear()
                _become(args, dict(os.environ if env is None else env))

            options["preexec_fn"] = go_on
        super().__init__(args, env=env, **options)


def _become(args: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Go on as that program, and end."""
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.alarm(_LONGEST)
    logging.root.handlers.clear()
    tempfile.tempdir = None
    os.environ.clear()
    os.environ.update(environment)
    code = 1
    try:
        _execute(*args)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _execute(program: str, *words: str) -> None:
    if program == "airflow-mlops":
        words = ("-m", "airflow_mlops", *words)
    how, *rest = words
    # As Python does: the folder of a script, else the one that it stands in.
    sys.path[0] = os.getcwd() if how in ("-c", "-m") else os.path.dirname(os.path.abspath(how))
    sys.argv = [how, *rest[1:]] if how in ("-c", "-m") else [how, *rest]
    if how == "-c":
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    elif how == "-m":
        # That it is loaded already is what is wanted here.
        warnings.filterwarnings("ignore", ".* found in sys.modules", RuntimeWarning, "runpy")
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(how, run_name="__main__")
