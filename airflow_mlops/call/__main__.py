"""The runner: ``python -m airflow_mlops.call CALL.json [OUTCOME.json]``. It needs no Airflow.

Both may be paths or any fsspec URIs. The Outcome goes to the second file, or to standard output; an error goes beside
that file, as ``OUTCOME.error.json``, in the form of `MlopsError.as_json`. Exit codes: 0 done; 1 the stage cannot be
done; 75 (the ``EX_TEMPFAIL`` of sysexits.h) it failed by what a retry may mend; 2 the Call cannot be read.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from pydantic import ValidationError

from airflow_mlops.call.dispatch import run
from airflow_mlops.call.store import reaching
from airflow_mlops.call.wire import Call
from airflow_mlops.errors import CodeError, JobFailedError, MlopsError

log = logging.getLogger(__name__)

LOG_FORMAT = "%(levelname)s %(name)s: %(message)s"


def main(arguments: list[str]) -> int:
    """Run one Call from a file."""
    if not 1 <= len(arguments) <= 2:
        print("usage: python -m airflow_mlops.call CALL.json [OUTCOME.json]", file=sys.stderr)
        return 2
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=LOG_FORMAT)
    return perform(arguments[0], arguments[1] if len(arguments) == 2 else None)


def run_to_text(call: Call) -> str:
    """Run a Call; its Outcome as the text that is written."""
    return run(call).model_dump_json(indent=1)


def perform(file: str | Path, target: str | Path | None, answer: Callable[[Call], str] = run_to_text) -> int:
    """Run the Call of a file, write what it comes to, and give the exit code.

    Args:
        file: the Call.
        target: where its Outcome goes. Default: standard output.
        answer: what is done with the Call; gives the text that is written.
    """
    try:
        with fsspec.open(str(file), "rb") as opened:
            call = Call.model_validate_json(opened.read())
    except (OSError, ValidationError) as error:
        print(f"{file}: is no Call: {error}", file=sys.stderr)
        return 2
    failure: MlopsError | None = None
    try:
        # Standard output is the Outcome's alone; MLflow and the user's code may print.
        with contextlib.redirect_stdout(sys.stderr):
            text = answer(call)
    except MlopsError as error:
        failure = error
        if isinstance(error, CodeError) and error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
    except (Exception, SystemExit) as error:
        log.exception("%s raised what is no error of ours", call.where)
        failure = JobFailedError(f"{type(error).__name__}: {error}", where=call.where)
    if failure is not None:
        return fail(failure, target)
    if target is not None:
        _write(str(target), text)
    else:
        print(text)
    return 0


def fail(failure: MlopsError, target: str | Path | None) -> int:
    """Say what was wrong, beside the target too, and give the exit code."""
    print(f"{type(failure).__name__}: {failure}", file=sys.stderr)
    if target is not None:
        _write(error_file(str(target)), json.dumps(failure.as_json(), indent=1))
    return 75 if failure.retryable else 1


def error_file(target: str) -> str:
    """Where the error goes of a Call whose Outcome would go to a file."""
    return f"{os.path.splitext(target)[0]}.error.json"


def _write(target: str, text: str) -> None:
    """Write a file whole or not at all; an object store does so by itself."""
    with reaching(target):
        fs, path = url_to_fs(target)
        if not isinstance(fs, LocalFileSystem):
            fs.pipe_file(path, text.encode())
            return
    beside = Path(f"{path}.part")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
