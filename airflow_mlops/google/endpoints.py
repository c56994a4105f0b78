"""An endpoint of Vertex AI: what is deployed on it, who gets how much of the traffic, and what it has answered.

Its id is made of the pipeline's name and what is deployed is known by its display name, so that a retry, or another
process, finds everything again; the traffic is split between the ids that Vertex AI gave.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from airflow_mlops.errors import CloudError, CloudNotFoundError
from airflow_mlops.google.names import PIPELINE_LABEL, label, resource_id, short
from airflow_mlops.google.operations import await_others, await_there, finished
from airflow_mlops.google.rest import Rest
from airflow_mlops.spec.google import Google, Machine

CHAMPION_LABEL = "mlops_champion"
"""The label of an endpoint that says which version is the champion there."""
_NAME = re.compile(r"mlops-v(?P<version>.+)-(?P<digest>[0-9a-z_-]{12})$")
_CREATE, _DEPLOY = 600.0, 3600.0
_METRIC = "aiplatform.googleapis.com/prediction/online"
_SAMPLE = timedelta(seconds=60)
"""How often Cloud Monitoring takes samples; it aligns over no shorter a time."""


class Deployed(NamedTuple):
    """A version on an endpoint."""

    id: str
    """The id that Vertex AI gave."""
    version: str
    name: str
    """What it is known by: its version and the beginning of its digest."""
    traffic: int
    """How many of a hundred requests it gets."""
    since: datetime
    """When it was deployed."""


class Stands(NamedTuple):
    """An endpoint as it is."""

    deployed: list[Deployed]
    """What is deployed, oldest first."""
    labels: dict[str, str]
    etag: str
    started: datetime

    @property
    def champion(self) -> str | None:
        """The version that its label names, where that gets traffic; else the one that gets most."""
        serving = {each.version: each.traffic for each in self.deployed if each.traffic}
        named = self.labels.get(CHAMPION_LABEL)
        return named if named in serving else max(serving, key=lambda each: serving[each], default=None)


class Counts(NamedTuple):
    """What a deployed version has answered since it was deployed, as Cloud Monitoring knows by now."""

    requests: int = 0
    """Answered requests, and those that failed; one that was the client's mistake is none."""
    errors: int = 0
    p99: float | None = None
    """In milliseconds."""


def name_of(version: str, digest: str) -> str:
    """What a version is known by on an endpoint."""
    return f"mlops-v{version}-{short(digest)[:12].ljust(12, '_')}"


class Endpoints:
    """The endpoint of a pipeline's model.

    Args:
        google: where.
        pipeline: the pipeline's name.
    """

    def __init__(self, google: Google, pipeline: str) -> None:
        self.google, self.pipeline = google, pipeline
        self.rest = Rest("aiplatform", google.connection, google.region)
        self.parent = f"projects/{google.project}/locations/{google.region}"
        self.id = resource_id(pipeline)
        self.name = f"{self.parent}/endpoints/{self.id}"

    @property
    def url(self) -> str:
        """Its address."""
        return f"{self.rest.base}/v1/{self.name}"

    def stands(self) -> Stands | None:
        """What it is now, by one request; None where there is no such endpoint."""
        try:
            found = self.rest.get(f"v1/{self.name}")
        except CloudNotFoundError:
            return None
        split = {name: int(share) for name, share in found.get("trafficSplit", {}).items()}
        deployed = [
            Deployed(
                each["id"], match["version"], each["displayName"], split.get(each["id"], 0), _moment(each["createTime"])
            )
            for each in found.get("deployedModels", ())
            if (match := _NAME.match(each.get("displayName", "")))
        ]
        deployed.sort(key=lambda each: (each.since, each.id))
        return Stands(deployed, found.get("labels", {}), found.get("etag", ""), _moment(found["createTime"]))

    def ready(self) -> Stands:
        """What it is, after what was begun on it is over; it is made where it is not there."""
        await_others(self.rest, self.name, _DEPLOY)
        found = self.stands()
        if found is not None:
            return found
        body = {"displayName": self.pipeline, "labels": {**self.google.labels, PIPELINE_LABEL: label(self.pipeline)}}
        if self.google.network:
            body["network"] = self.google.network
        try:
            begun = self.rest.ask(
                "POST", f"v1/{self.parent}/endpoints", body, query={"endpointId": self.id}, again=False
            )
        except CloudError as error:
            if error.status != "ALREADY_EXISTS":
                raise
            await_there(self.stands, f"the endpoint {self.id}", _CREATE)
            return self.ready()
        finished(self.rest, begun, f"making the endpoint {self.id}", _CREATE)
        return self.ready()

    def deploy(self, version: str, digest: str, model: str, machine: Machine) -> None:
        """Deploy a version, without any traffic.

        Args:
            version: MLflow's version.
            digest: the digest of its model.
            model: the resource name of its mirror.
            machine: what it runs on.
        """
        spec: dict[str, Any] = {"machineType": machine.machine_type}
        if machine.accelerator:
            spec |= {"acceleratorType": machine.accelerator.type, "acceleratorCount": machine.accelerator.count}
        resources: dict[str, Any] = {"machineSpec": spec, "minReplicaCount": machine.replicas}
        if machine.spot:
            resources["spot"] = True
        deployed: dict[str, Any] = {
            "model": model,
            "displayName": name_of(version, digest),
            "dedicatedResources": resources,
        }
        if self.google.service_account:
            deployed["serviceAccount"] = self.google.service_account
        begun = self.rest.ask("POST", f"v1/{self.name}:deployModel", {"deployedModel": deployed}, again=False)
        finished(self.rest, begun, f"deploying version {version}", _DEPLOY)

    def split(self, stands: Stands, shares: Mapping[str, int], champion: str) -> None:
        """Give deployed ids their shares of the traffic, and say who is the champion, in one step.

        Args:
            stands: what the endpoint is; where somebody has changed it since, nothing is done.
            shares: of a hundred requests, by id.
            champion: the version.

        Raises:
            CloudError: with the status ``ABORTED`` or ``FAILED_PRECONDITION`` where it was changed meanwhile.
        """
        labels = {**stands.labels, CHAMPION_LABEL: label(champion)}
        body = {"trafficSplit": dict(shares), "labels": labels, "etag": stands.etag}
        self.rest.ask("PATCH", f"v1/{self.name}", body, query={"updateMask": "trafficSplit,labels"})

    def undeploy(self, deployed: Deployed) -> None:
        """Take away what gets no traffic."""
        begun = self.rest.ask("POST", f"v1/{self.name}:undeployModel", {"deployedModelId": deployed.id}, again=False)
        finished(self.rest, begun, f"undeploying version {deployed.version}", _DEPLOY)

    def counts(self, stands: Stands) -> dict[str, Counts]:
        """What each deployed id has answered, by two requests to Cloud Monitoring."""
        if not stands.deployed:
            return {}
        since = min(each.since for each in stands.deployed)
        told: dict[str, list[int]] = {each.id: [0, 0] for each in stands.deployed}
        for labels, value in self._series("response_count", since, "REDUCE_SUM", "metric.labels.response_code"):
            if labels.get("deployed_model_id") not in told or labels.get("response_code", "")[:1] not in ("2", "5"):
                continue
            count = told[labels["deployed_model_id"]]
            count[0] += int(value)
            count[1] += int(value) if labels["response_code"].startswith("5") else 0
        slow = {
            labels.get("deployed_model_id"): float(value)
            for labels, value in self._series("prediction_latencies", since, "REDUCE_PERCENTILE_99")
        }
        return {each: Counts(count[0], count[1], slow.get(each)) for each, count in told.items()}

    def _series(self, metric: str, since: datetime, reducer: str, *by: str) -> list[tuple[dict[str, str], float]]:
        """Values of a metric since a time, one for each deployed id and what else is asked for."""
        now = datetime.now(UTC)
        whole = max(now - since, _SAMPLE)
        chosen = f'metric.type = "{_METRIC}/{metric}" AND resource.labels.endpoint_id = "{self.id}"'
        if metric == "prediction_latencies":
            chosen += ' AND metric.labels.latency_type = "total"'
        query = {
            "filter": chosen,
            "interval.startTime": (now - whole).isoformat().replace("+00:00", "Z"),
            "interval.endTime": now.isoformat().replace("+00:00", "Z"),
            "aggregation.alignmentPeriod": f"{int(whole.total_seconds()) + 1}s",
            "aggregation.perSeriesAligner": "ALIGN_DELTA",
            "aggregation.crossSeriesReducer": reducer,
            "aggregation.groupByFields": ["metric.labels.deployed_model_id", *by],
        }
        rest = Rest("monitoring", self.google.connection)
        found = rest.pages(f"v3/projects/{self.google.project}/timeSeries", "timeSeries", **query)
        return [
            (each["metric"].get("labels", {}), float(next(iter(point["value"].values()))))
            for each in found
            for point in each.get("points", ())
        ]


def _moment(text: str) -> datetime:
    # Google gives nanoseconds, of which Python reads six digits.
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text).replace("Z", "+00:00"))
