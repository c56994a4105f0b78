"""The body of a job: what Vertex AI is asked to run, and on what."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from airflow_mlops.call.wire import Call
from airflow_mlops.errors import DeclarationError
from airflow_mlops.google import job
from airflow_mlops.spec.google import Google, Machine

CALL_LABEL, DIGEST_LABEL, JOB_LABEL = "mlops_call", "mlops_digest", "mlops_job"
"""Labels by which a job is found again. A dash in a name would be a minus in a filter."""


def short(digest: str) -> str:
    """A digest as the value of a label, which has at most 63 characters."""
    return digest.removeprefix("sha256:")[:32]


def labels_of(google: Google, call: Call, name: str) -> dict[str, str]:
    """The labels of everything that is made for a Call."""
    return {
        **google.labels,
        "mlops_pipeline": _label(call.pipeline),
        "mlops_stage": call.stage,
        CALL_LABEL: call.identity,
        DIGEST_LABEL: short(call.digest),
        JOB_LABEL: name,
    }


def _label(text: str) -> str:
    return re.sub(r"[^a-z0-9_-]", "-", text.lower())[:63]


def display_name(call: Call) -> str:
    """What people read in the console."""
    return " ".join([call.pipeline, call.stage, *([call.window.key] if call.window else [])])[:128]


def job_spec(google: Google, call: Call, folder: str, environment: Mapping[str, str], seconds: int) -> dict[str, Any]:
    """The ``CustomJobSpec`` of a Call that lies in a folder of the store.

    Raises:
        DeclarationError: when no image is declared.
    """
    if google.image is None:
        raise DeclarationError(
            [
                f"{call.where}: no image is declared for the backend 'vertex'; try: build it with "
                f"`{job.build_command('REGION-docker.pkg.dev/PROJECT/REPOSITORY/stage')}` and declare google.image: "
                "IMAGE@sha256:... as it prints it"
            ]
        )
    machine = google.machine_of(call.stage)
    container = {
        "imageUri": google.image,
        "command": ["python", "-m", "airflow_mlops.google.job"],
        "args": [f"{folder}/call.json", f"{folder}/outcome.json"],
        "env": [
            {"name": name, "value": value}
            for name, value in (
                (job.WANTED, job.holds()),
                (job.IMAGE, google.image),
                (job.CONNECTION, google.connection),
                ("GOOGLE_CLOUD_PROJECT", google.project),
                *sorted(environment.items()),
            )
        ],
    }
    replicas = machine.replicas if call.stage == "train" else 1
    pools = [_pool(machine, container, 1)]
    if replicas > 1:
        pools.append(_pool(machine, container, replicas - 1))
    spec: dict[str, Any] = {"workerPoolSpecs": pools, "scheduling": {"timeout": f"{seconds}s"}}
    if machine.spot:
        spec["scheduling"] |= {"strategy": "SPOT", "restartJobOnWorkerRestart": True}
    if google.service_account:
        spec["serviceAccount"] = google.service_account
    if google.network:
        spec["network"] = google.network
    return spec


def _pool(machine: Machine, container: Mapping[str, Any], count: int) -> dict[str, Any]:
    kind: dict[str, Any] = {"machineType": machine.machine_type}
    if machine.accelerator:
        kind |= {"acceleratorType": machine.accelerator.type, "acceleratorCount": machine.accelerator.count}
    return {
        "machineSpec": kind,
        "replicaCount": count,
        "diskSpec": {"bootDiskSizeGb": machine.disk_gb},
        "containerSpec": container,
    }
