"""The runner of a job on Vertex AI: ``python -m airflow_mlops.google.job CALL OUTCOME [--NAME=VALUE ...]``.

It is `airflow_mlops.call` and what a job of Google's has around it: an image that may hold another version, secrets in
Secret Manager, several machines, and trials that get the values of their params as arguments.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

from fsspec.core import url_to_fs

from airflow_mlops import __version__
from airflow_mlops.call.__main__ import LOG_FORMAT, fail, perform, run_to_text
from airflow_mlops.call.store import reaching
from airflow_mlops.call.wire import Call
from airflow_mlops.errors import CodeError, MlopsError, RuntimeBuildError
from airflow_mlops.google import secrets

log = logging.getLogger(__name__)

WANTED, IMAGE, SECRET, CONNECTION = (f"AIRFLOW_MLOPS_{name}" for name in ("WANTED", "IMAGE", "SECRET", "CONNECTION"))
"""The variables of a job: what its image must hold, the image, its secret, and the connection that it acts by."""
METRIC_FILE, TRIAL = "CLOUD_ML_HP_METRIC_FILE", "CLOUD_ML_TRIAL_ID"
"""Vertex AI's own: where a trial reports its metric, and which trial it is."""
OBJECTIVE = "objective"
"""The name by which a trial reports what it measured."""


def holds() -> str:
    """What an image holds that runs stages: this package's version, and Python's."""
    return f"airflow-mlops {__version__} on Python {sys.version_info.major}.{sys.version_info.minor}"


def build_command(image: str) -> str:
    """The command that builds the image anew, for the Python that runs this."""
    name = image.partition("@")[0]
    name = name if ":" in name.rpartition("/")[2] else f"{name}:{__version__}"
    python = platform.python_version()
    return f"gcloud builds submit --config docker/cloudbuild.yaml --substitutions _IMAGE={name},_PYTHON={python}"


def main(arguments: list[str]) -> int:
    """Run the Call that a job is for."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=LOG_FORMAT)
    call, outcome, *point = arguments
    if point:
        outcome = outcome.removesuffix(".json") + f"-{os.environ.get(TRIAL, '0')}.json"
    elif _exists(outcome):
        log.info("the machine was restarted after the stage was done")
        return 0
    try:
        wanted = os.environ.get(WANTED, holds())
        if wanted != holds():
            image = os.environ.get(IMAGE, "")
            raise RuntimeBuildError(
                f"the image {image} holds {holds()}, and the worker is {wanted}",
                fix=f"build it anew from the worker's version and declare it in google.image: {_command(wanted)}",
            )
        if secret := os.environ.pop(SECRET, None):
            os.environ.update(secrets.read(secret, os.environ.get(CONNECTION, "google_cloud_default")))
    except MlopsError as error:
        return fail(error, outcome)
    if point:
        return perform(call, outcome, lambda asked: _trial(asked, dict(map(_pair, point))))
    if _is_chief():
        return perform(call, outcome)
    log.info("not the first machine: what it makes is thrown away")
    with tempfile.TemporaryDirectory() as folder:
        return perform(call, Path(folder, "outcome.json"), lambda asked: run_to_text(_aside(asked, folder)))


def _command(wanted: str) -> str:
    python = wanted.rpartition(" ")[2]
    return build_command(os.environ.get(IMAGE, "")).rpartition("=")[0] + f"={python}"


def _pair(argument: str) -> tuple[str, str]:
    name, _, value = argument.removeprefix("--").partition("=")
    return name, value


def _exists(uri: str) -> bool:
    with reaching(uri):
        fs, path = url_to_fs(uri)
        return bool(fs.exists(path))


def _is_chief() -> bool:
    """Whether this is the first machine of the first pool, or the only one."""
    task = json.loads(os.environ.get("CLUSTER_SPEC") or "{}").get("task") or {}
    return task.get("type", "workerpool0") in ("workerpool0", "chief") and int(task.get("index", 0)) == 0


def _aside(call: Call, folder: str) -> Call:
    """The Call with a store and a registry that nobody looks into; its inputs are where they are."""
    registry = call.registry and call.registry.model_copy(update={"uri": f"sqlite:///{folder}/mlflow.db"})
    return call.model_copy(update={"store": f"{folder}/store", "registry": registry, "cache": False})


def _trial(call: Call, point: dict[str, str]) -> str:
    """Measure one point of a tuning and report it in the form of Google's own package ``cloudml-hypertune``."""
    # The stages stand above this layer; this is the door to them that `call.dispatch` is for a whole Call.
    measured = import_module("airflow_mlops.stages.trials").measure(call, point)
    if measured.get("value") is None:
        raise CodeError(str(measured["reason"]), where=call.where)
    file = Path(os.environ.get(METRIC_FILE, "/tmp/hypertune/output.metrics"))  # noqa: S108 - Google's own place
    file.parent.mkdir(parents=True, exist_ok=True)
    line = {
        OBJECTIVE: str(measured["value"]),
        "global_step": "0",
        "checkpoint_path": "",
        "timestamp": time.time(),
        "trial": os.environ.get(TRIAL, "0"),
    }
    file.write_text(json.dumps(line, sort_keys=True) + "\n", encoding="utf-8")
    return json.dumps(measured)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
