"""The Vertex AI Model Registry: the versions of one model, found by their labels, uploaded, and named by aliases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from airflow_mlops.errors import CloudError, CloudNotFoundError
from airflow_mlops.google.names import DIGEST_LABEL, VERSION_LABEL, label, labels_of, resource_id, short
from airflow_mlops.google.operations import await_others, await_there, finished
from airflow_mlops.google.rest import Rest
from airflow_mlops.spec.google import Google

_UPLOAD = 1800.0
PORT = 8080
"""The port of the serving container."""


class Mirrored(NamedTuple):
    """A version as the Vertex AI Model Registry has it."""

    id: str
    """Its number there."""
    aliases: tuple[str, ...]
    labels: dict[str, str]
    uri: str
    """Where its files are."""

    @property
    def version(self) -> str | None:
        """MLflow's version, as its label says."""
        return self.labels.get(VERSION_LABEL)

    def is_of(self, version: str, digest: str) -> bool:
        """Whether it is the model of that digest, by its labels or, where somebody took them away, by its files."""
        own = {VERSION_LABEL: label(version), DIGEST_LABEL: label(short(digest))}
        said = {name: self.labels[name] for name in own if name in self.labels}
        if said == own or not said.items() <= own.items():
            return said == own
        return self.uri.rstrip("/").rpartition("/")[2] == digest.removeprefix("sha256:")


class Models:
    """The versions of a pipeline's model.

    Args:
        google: where.
        pipeline: the pipeline's name.
    """

    def __init__(self, google: Google, pipeline: str) -> None:
        self.google, self.pipeline = google, pipeline
        self.rest = Rest("aiplatform", google.connection, google.region)
        self.parent = f"projects/{google.project}/locations/{google.region}"
        self.name = f"{self.parent}/models/{resource_id(pipeline)}"

    def versions(self) -> list[Mirrored]:
        """Every version, oldest first; none where there is no such model."""
        try:
            pages = list(self.rest.pages(f"v1/{self.name}:listVersions", "models"))
        except CloudNotFoundError:
            return []
        found = [
            Mirrored(
                each["versionId"],
                tuple(each.get("versionAliases", ())),
                dict(each.get("labels", {})),
                each.get("artifactUri", ""),
            )
            for each in pages
        ]
        return sorted(found, key=lambda each: int(each.id))

    def find(self, version: str, digest: str) -> Mirrored | None:
        """The version that is a model already, or None."""
        return next((each for each in self.versions() if each.is_of(version, digest)), None)

    def upload(self, version: str, digest: str, files: str) -> Mirrored:
        """Upload a version, unless it is there: found again by its labels, also one that is just being uploaded.

        Args:
            version: MLflow's version.
            digest: the digest of its model.
            files: the folder of its files, on ``gs://``.

        Raises:
            CloudError: when it is refused.
        """
        await_others(self.rest, self.name, _UPLOAD)
        there = self.versions()
        found = next((each for each in there if each.is_of(version, digest)), None)
        if found is not None:
            return found
        model: dict[str, Any] = {
            "displayName": self.pipeline,
            "versionDescription": f"MLflow version {version}, {digest}",
            "labels": {**self.google.labels, **labels_of(self.pipeline, version, digest)},
            "artifactUri": files,
            "containerSpec": container(self.google, self.pipeline, version, digest),
        }
        body: dict[str, Any] = {"model": model}
        body |= {"parentModel": self.name} if there else {"modelId": resource_id(self.pipeline)}
        if self.google.service_account:
            body["serviceAccount"] = self.google.service_account
        try:
            begun = self.rest.ask("POST", f"v1/{self.parent}/models:upload", body, again=False)
        except CloudError as error:
            if error.status != "ALREADY_EXISTS":
                raise
            # Somebody is making the model, an earlier try perhaps; until it is there it has no operations to wait for.
            await_there(self.versions, f"the model {resource_id(self.pipeline)}", _UPLOAD)
            return self.upload(version, digest, files)
        finished(self.rest, begun, f"the upload of version {version}", _UPLOAD)
        found = self.find(version, digest)
        if found is None:
            raise CloudError(f"Vertex AI does not list version {version} of {self.pipeline!r}, which it has just taken")
        return found

    def resource(self, found: Mirrored) -> str:
        """The resource name of a version."""
        return f"{self.name}@{found.id}"

    def name_by(self, found: Mirrored, aliases: Sequence[str]) -> None:
        """Give a version aliases, which leave whatever had them; one that begins with ``-`` is taken away."""
        self.rest.ask("POST", f"v1/{self.resource(found)}:mergeVersionAliases", {"versionAliases": list(aliases)})

    def relabel(self, found: Mirrored, labels: Mapping[str, str]) -> None:
        """Set the labels of a version."""
        self.rest.ask("PATCH", f"v1/{self.resource(found)}", {"labels": dict(labels)}, query={"updateMask": "labels"})


def container(google: Google, pipeline: str, version: str, digest: str) -> dict[str, Any]:
    """What serves a version: the image that its stages run in, since its libraries are those that trained it.

    Vertex AI puts where the files are, and the port, into the variables that the arguments name.
    """
    options = {"--version": version, "--digest": digest, "--files": "$(AIP_STORAGE_URI)"}
    options |= {"--host": "0.0.0.0", "--port": "$(AIP_HTTP_PORT)"}  # noqa: S104 - in its container
    return {
        "imageUri": google.image,
        "command": ["python", "-m", "airflow_mlops"],
        "args": ["serve", pipeline, *(each for option in options.items() for each in option)],
        "ports": [{"containerPort": PORT}],
        "predictRoute": "/invocations",
        "healthRoute": "/ping",
    }
