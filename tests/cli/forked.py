"""``airflow-mlops`` in processes of their own that have its libraries already: all are forked from one.


To import what a whole run needs takes five CPU seconds, and most commands in these tests work for less than one.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

LIBRARIES = ("mlflow.sklearn", "mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store")
ROOT = Path(__file__).parents[2]
_LONGEST = 300


def command(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``airflow-mlops`` in a folder, to its end."""
    parent = _parent()
    assert parent.stdin is not None and parent.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        told = {"words": words, "cwd": str(cwd), "env": {**os.environ, **environment}}
        parent.stdin.write(json.dumps({**told, "out": str(out), "err": str(err)}) + "\n")
        parent.stdin.flush()
        code = int(parent.stdout.readline())
        return subprocess.CompletedProcess(words, code, out.read_text(), err.read_text())


@cache
def _parent() -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "tests.cli.forked"]
    return subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def end() -> None:
    """End the process that all are forked from, if there is one."""
    if _parent.cache_info().currsize:
        parent = _parent()
        assert parent.stdin is not None
        parent.stdin.close()
        parent.wait(30)


def _serve() -> None:
    from airflow_mlops.call.dispatch import STAGES, stage_module
    from airflow_mlops.cli import main, run

    for name in LIBRARIES:
        importlib.import_module(name)
    for stage in STAGES:
        stage_module(stage)
    assert run
    # What a command prints goes where it is told; the answer stays here.
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _become(json.loads(line), main)
        answers.write(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n")
        answers.flush()


def _become(asked: Mapping[str, Any], main: Any) -> None:
    signal.alarm(_LONGEST)
    for number, file in enumerate((os.devnull, asked["out"], asked["err"])):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    sys.path[0], sys.argv = asked["cwd"], ["airflow-mlops", *asked["words"]]
    code = 1
    try:
        code = main(asked["words"])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
