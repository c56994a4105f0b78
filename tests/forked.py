"""``python`` and ``airflow-mlops`` in processes of their own that have their libraries: all are forked from one.

To import what a whole run needs takes five CPU seconds, and most commands in these tests work for less than one.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
import warnings
from functools import cache
from pathlib import Path
from typing import Any

from tests import asking

CLI = (
    "airflow_mlops.cli.run",
    "mlflow.sklearn",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store",
    *(
        f"airflow_mlops.stages.{name}"
        for name in ("extract", "validate_data", "prepare", "train", "evaluate", "plots", "promises", "monitor")
    ),
)
"""What a run needs, from its first stage to its last."""
AIRFLOW = ("airflow.sdk", "airflow.dag_processing.dagbag")
"""What has been imported where Airflow parses a DAG file. A command has none of it."""
ROOT = Path(__file__).parents[1]
_LONGEST = 1200


def command(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``airflow-mlops`` in a folder, to its end."""
    return _run(CLI, "airflow-mlops", *words, cwd=cwd, **environment)


def python(
    *words: str, libraries: tuple[str, ...] = CLI, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``python`` where these libraries are loaded and nothing else, to its end."""
    return _run(libraries, "python", *words, cwd=cwd, **environment)


def printed(code: str, *words: str, libraries: tuple[str, ...] = CLI, cwd: Path = ROOT, **environment: str) -> Any:
    """What code prints as JSON in its last line, where these libraries are loaded and nothing else."""
    done = python("-c", code, *words, libraries=libraries, cwd=cwd, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def commands(folder: Path) -> str:
    """The search path for commands with `python` and `airflow-mlops` as they are here before all others."""
    path = _parent(CLI)
    for name in ("python", "airflow-mlops"):
        file = folder / name
        file.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{asking.__file__}" "{path}" {name} "$@"\n')
        file.chmod(0o755)
    return os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])


def _run(libraries: tuple[str, ...], *words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    with open(os.devnull) as nothing, tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        streams = [stream.fileno() for stream in (nothing, out, err)]
        code = asking.ask(_parent(libraries), list(words), str(cwd), {**os.environ, **environment}, streams)
        for stream in (out, err):
            stream.seek(0)
        return subprocess.CompletedProcess(words, code, out.read(), err.read())


@cache
def _parent(libraries: tuple[str, ...]) -> str:
    """The address of the process that has these libraries; it ends with this one."""
    folder = tempfile.TemporaryDirectory(prefix="forked-")
    path = os.path.join(folder.name, "socket")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen()
    code = f"from tests import forked; forked.serve({listening.fileno()}, {libraries!r})"
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, pass_fds=[listening.fileno()]
    )
    listening.close()

    def end() -> None:
        with folder:
            parent.communicate()

    atexit.register(end)
    return path


def serve(number: int, libraries: tuple[str, ...]) -> None:
    """Fork a process for each that asks, until standard input ends."""
    for name in libraries:
        importlib.import_module(name)
    if "mlflow" in sys.modules:
        # The first model that a process logs costs more than a second: MLflow looks through all that is installed.
        importlib.import_module("mlflow.utils.requirements_utils")._init_modules_to_packages_map()
    listening = socket.socket(fileno=number)
    while sys.stdin not in (asked := select.select([listening, sys.stdin], [], [], 1)[0]):
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if asked:
            asker = listening.accept()[0]
            if os.fork() == 0:
                listening.close()
                _become(asker)
            asker.close()


def _become(asker: socket.socket) -> None:
    streams = socket.recv_fds(asker, 1, 3)[1]
    with asker.makefile() as told:
        words, cwd, environment = json.loads(told.readline())
    signal.alarm(_LONGEST)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    code = 1
    try:
        _execute(*words)
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
        asker.sendall(str(code).encode())
        os._exit(code)


def _execute(program: str, *words: str) -> None:
    if program == "airflow-mlops":
        program, words = "python", ("-m", "airflow_mlops", *words)
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
