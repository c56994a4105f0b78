"""A batch prediction job of Vertex AI: submitted once for a key, found again by its label, and waited for."""

from __future__ import annotations

import time
from typing import Any

from airflow_mlops.errors import CloudError
from airflow_mlops.google.operations import persistently
from airflow_mlops.google.rest import Rest
from airflow_mlops.spec.google import Google

CALL_LABEL = "mlops_call"
"""The label of a job that says what it was submitted for."""
ROW = "mlops_row"
"""The key of an instance: which row it is."""
_FIRST, _LONGEST = 0.2, 15.0
_OVER = frozenset({"JOB_STATE_SUCCEEDED", "JOB_STATE_PARTIALLY_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED"})
_LOST = frozenset({"JOB_STATE_FAILED", "JOB_STATE_CANCELLED", "JOB_STATE_CANCELLING", "JOB_STATE_EXPIRED"})
"""The states of a job that gives no answer: a retry submits another."""


class BatchJobs:
    """The batch prediction jobs of a project.

    Args:
        google: where.
    """

    def __init__(self, google: Google) -> None:
        self.google = google
        self.rest = Rest("aiplatform", google.connection, google.region)
        self.path = f"v1/projects/{google.project}/locations/{google.region}/batchPredictionJobs"

    def find(self, key: str) -> dict[str, Any] | None:
        """The job of a key that gives or gave answers, or None."""
        found = self.rest.pages(self.path, "batchPredictionJobs", filter=f'labels.{CALL_LABEL}="{key}"')
        return next((each for each in found if each.get("state") not in _LOST), None)

    def submit(self, key: str, name: str, model: str, instances: str, output: str) -> dict[str, Any]:
        """Submit a job, unless there is one.

        Args:
            key: what it is for; 63 characters of a label.
            name: what it is called.
            model: the resource name of the version.
            instances: the JSON lines, on ``gs://``.
            output: the folder of its output, on ``gs://``.
        """
        machine = self.google.machine_of("batch_predict")
        spec: dict[str, Any] = {"machineType": machine.machine_type}
        if machine.accelerator:
            spec |= {"acceleratorType": machine.accelerator.type, "acceleratorCount": machine.accelerator.count}
        body: dict[str, Any] = {
            "displayName": name,
            "model": model,
            "labels": {**self.google.labels, CALL_LABEL: key},
            "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": [instances]}},
            "outputConfig": {"predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": output}},
            "instanceConfig": {"instanceType": "object", "keyField": ROW},
            "modelParameters": {"probabilities": True},
            "dedicatedResources": {
                "machineSpec": spec,
                "startingReplicaCount": machine.replicas,
                "maxReplicaCount": machine.replicas,
            },
        }
        if self.google.service_account:
            body["serviceAccount"] = self.google.service_account
        return persistently(lambda: self.find(key) or self.rest.ask("POST", self.path, body, again=False))

    def finished(self, job: dict[str, Any]) -> str:
        """Wait for a job; return the folder of its output.

        Raises:
            CloudError: when it failed or was cancelled.
        """
        pause = _FIRST
        name = job["name"]
        while job.get("state") not in _OVER:
            time.sleep(pause)
            pause = min(pause * 1.5, _LONGEST)
            job = self.rest.get(f"v1/{name}")
        if job["state"] in _LOST:
            why = job.get("error", {}).get("message") or job["state"]
            raise CloudError(f"the batch prediction job {name} has not succeeded: {why}", fix="look at its log")
        return str(job["outputInfo"]["gcsOutputDirectory"])
