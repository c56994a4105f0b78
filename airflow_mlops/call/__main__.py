"""The runner: ``python -m airflow_mlops.call CALL.json [OUTCOME.json]``. It needs no Airflow.

The Outcome goes to the second file, or to standard output; an error goes beside that file, as ``OUTCOME.error.json``,
in the form of `MlopsError.as_json`. Exit codes: 0 done; 1 the stage cannot be done; 75 (the ``EX_TEMPFAIL`` of
sysexits.h) it failed by what a retry may mend; 2 the Call cannot be read.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import traceback
from pathlib import Path

from pydantic import ValidationError

from airflow_mlops.call.dispatch import run
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
    return perform(Path(arguments[0]), Path(arguments[1]) if len(arguments) == 2 else None)


def perform(file: Path, target: Path | None) -> int:
    """Run the Call of a file, write what it comes to, and give the exit code."""
    try:
        call = Call.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        print(f"{file}: is no Call: {error}", file=sys.stderr)
        return 2
    failure: MlopsError | None = None
    try:
        # Standard output is the Outcome's alone; MLflow and the user's code may print.
        with contextlib.redirect_stdout(sys.stderr):
            text = run(call).model_dump_json(indent=1)
    except MlopsError as error:
        failure = error
        if isinstance(error, CodeError) and error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
    except (Exception, SystemExit) as error:
        log.exception("%s raised what is no error of ours", call.where)
        failure = JobFailedError(f"{type(error).__name__}: {error}", where=call.where)
    if failure is not None:
        print(f"{type(failure).__name__}: {failure}", file=sys.stderr)
        if target is not None:
            _write(target.with_suffix(".error.json"), json.dumps(failure.as_json(), indent=1))
        return 75 if failure.retryable else 1
    if target is not None:
        _write(target, text)
    else:
        print(text)
    return 0


def _write(target: Path, text: str) -> None:
    beside = target.with_name(target.name + ".part")
    beside.write_text(text, encoding="utf-8")
    beside.replace(target)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
