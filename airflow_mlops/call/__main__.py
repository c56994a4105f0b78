"""The runner: ``python -m airflow_mlops.call CALL.json [OUTCOME.json]``. It needs no Airflow.

The Outcome goes to the second file, or to standard output. Exit codes: 0 done; 1 the stage cannot be done; 75 (the
``EX_TEMPFAIL`` of sysexits.h) it failed by what a retry may mend; 2 the Call cannot be read.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from pathlib import Path

from pydantic import ValidationError

from airflow_mlops.call.dispatch import run
from airflow_mlops.call.wire import Call
from airflow_mlops.errors import MlopsError


def main(arguments: list[str]) -> int:
    """Run one Call from a file."""
    if not 1 <= len(arguments) <= 2:
        print("usage: python -m airflow_mlops.call CALL.json [OUTCOME.json]", file=sys.stderr)
        return 2
    try:
        call = Call.model_validate_json(Path(arguments[0]).read_bytes())
    except (OSError, ValidationError) as error:
        print(f"{arguments[0]}: is no Call: {error}", file=sys.stderr)
        return 2
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        # Standard output is the Outcome's alone; MLflow and the user's code may print.
        with contextlib.redirect_stdout(sys.stderr):
            text = run(call).model_dump_json(indent=1)
    except MlopsError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 75 if error.retryable else 1
    if len(arguments) == 2:
        target = Path(arguments[1])
        beside = target.with_name(target.name + ".part")
        beside.write_text(text, encoding="utf-8")
        beside.replace(target)
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
