"""The target ``vertex``: an endpoint of Vertex AI, whose traffic is made what the ledger says.

Everything is done by looking at what is there, in an order that leaves somebody serving at every moment: deploy without
traffic, move the traffic in one request, then take away what gets none. Ended between any two of these, the next look
goes on from there.

The champion before stays deployed, without traffic, until the ledger has a ``deployment`` of the new one: so that one
that answers golden rows otherwise gives way at once, not after the minutes that a new deployment takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import RegistryRef
from airflow_mlops.deployments.endpoint import PROBE_HEADER, Endpoint
from airflow_mlops.deployments.local import clean_server
from airflow_mlops.errors import CloudError, DeploymentError
from airflow_mlops.google.endpoints import Deployed, Endpoints, Stands, name_of
from airflow_mlops.google.operations import persistently
from airflow_mlops.google.rest import Rest
from airflow_mlops.registry.ledger import MOVES, Ledger, Traffic
from airflow_mlops.registry.mirror import Mirror, mirror_of
from airflow_mlops.registry.models import ModelRegistry
from airflow_mlops.registry.serving import Served, Serving
from airflow_mlops.spec.google import Google

_CHANGED = ("ABORTED", "FAILED_PRECONDITION")
_DEPLOYED_BY = "X-Vertex-AI-Deployed-Model-Id"


class VertexDeployment:
    """An endpoint of Vertex AI.

    Args:
        google: the pipeline's section, or None for the one that a run has declared before.
    """

    def __init__(self, google: Google | Mapping[str, Any] | None = None) -> None:
        self._google = None if google is None else Google.model_validate(google)

    @contextmanager
    def open(
        self,
        registry: RegistryRef,
        store: Store,
        version: str,
        digest: str,
        *,
        seconds: float,
        allow_pickle: bool = False,
    ) -> Iterator[Endpoint]:
        """The very server that the container runs, from the very files that it gets, in a clean process here.

        A version that does not load or answers otherwise is found in seconds. An endpoint of its own would take ten
        minutes and a machine to say the same; what only Google's machine can say is said when the version is deployed,
        still without traffic. The container loads no model that runs code when it is loaded, whatever is allowed.
        """
        files = self._mirror(registry, store).files(version, digest)
        with clean_server(registry.model, version, digest, ("--files", files), seconds) as endpoint:
            yield endpoint

    def follow(self, registry: RegistryRef, store: Store) -> None:
        """Make endpoint, deployed versions and traffic what the ledger says.

        Raises:
            CloudError: when something is refused; what served before serves on.
            DeploymentError: when the ledger says what cannot be done here.
        """
        mirror, ledger = self._mirror(registry, store), Ledger(store, registry.model)
        while True:
            traffic = ledger.traffic()
            if traffic.champion is None:
                return
            if traffic.candidate is not None and not traffic.share:
                raise DeploymentError(
                    "Vertex AI sends a request to one deployed model only, so no candidate can stand in the shadow",
                    allowed="strategy: {canary: N}, strategy: replace",
                )
            self._follow(registry, ledger, mirror, traffic)
            # Who has moved the ledger meanwhile may have looked at the endpoint before we changed it.
            if ledger.traffic()[1:] == traffic[1:]:
                return

    def live(self, registry: RegistryRef, store: Store) -> list[Serving]:
        """The endpoint, where it serves; while two versions share the traffic, what each has answered."""
        endpoints = Endpoints(self._section(registry, store), registry.model)
        stands = endpoints.stands()
        if stands is None or stands.champion is None:
            return []
        serving = {each.version: each for each in stands.deployed if each.traffic}
        candidate = next((each for each in serving if each != stands.champion), None)
        counts = endpoints.counts(stands) if candidate else {}
        return [
            Serving(
                server=endpoints.id,
                url=endpoints.url,
                pid=0,
                started=stands.started,
                at=datetime.now(UTC),
                champion=stands.champion,
                candidate=candidate,
                share=serving[candidate].traffic if candidate else 0,
                versions={
                    version: Served(requests=found.requests, errors=found.errors, p99=found.p99)
                    for version, each in serving.items()
                    if (found := counts.get(each.id))
                },
            )
        ]

    def connect(self, registry: RegistryRef, store: Store, server: Serving) -> Endpoint:
        """Whoever speaks to the endpoint, by our credentials there."""
        endpoints = Endpoints(self._section(registry, store), registry.model)
        stands = endpoints.stands()
        return _VertexEndpoint(endpoints, stands.deployed if stands else [])

    def _follow(self, registry: RegistryRef, ledger: Ledger, mirror: Mirror, traffic: Traffic) -> None:
        wanted = {each: ledger.digest(each) for each in (traffic.champion, traffic.candidate) if each}
        models = {version: mirror.have(version) for version in wanted}
        endpoints = Endpoints(mirror.google, registry.model)
        machine = mirror.google.machine_of("deploy")

        def made_so() -> None:
            stands = endpoints.ready()
            for version, digest in wanted.items():
                if _first(stands, version, digest) is None:
                    endpoints.deploy(version, digest, models[version], machine)
                    stands = endpoints.ready()
            shares = _shares(stands, wanted, traffic)
            if shares != {each.id: each.traffic for each in stands.deployed if each.traffic} or (
                stands.champion != traffic.champion
            ):
                endpoints.split(stands, shares, str(traffic.champion))
                stands = endpoints.ready()
            kept = _kept(ledger)
            for each in stands.deployed:
                if not each.traffic and each.version != kept:
                    endpoints.undeploy(each)

        self._although_changed(lambda: persistently(made_so))
        mirror.project()

    @staticmethod
    def _although_changed(deed: Any) -> None:
        """Once more where somebody else has changed the endpoint under us."""
        for last in (False, False, True):
            try:
                return deed()  # type: ignore[no-any-return]
            except CloudError as error:
                if last or error.status not in _CHANGED:
                    raise
        return None

    def _section(self, registry: RegistryRef, store: Store) -> Google:
        return self._google or self._mirror(registry, store).google

    def _mirror(self, registry: RegistryRef, store: Store) -> Mirror:
        found = mirror_of(ModelRegistry(registry, store), store, self._google)
        if found is None:
            raise DeploymentError(
                f"it is not known where on Google Cloud {registry.model!r} is served, and from which image",
                fix="google: {project: P, region: R, image: IMAGE}",
            )
        return found


class _VertexEndpoint(Endpoint):
    """A client of ``rawPredict``, which hands on what our server says as it is."""

    def __init__(self, endpoints: Endpoints, deployed: list[Deployed]) -> None:
        super().__init__(endpoints.url)
        self._rest: Rest = endpoints.rest
        self._name = endpoints.name
        self._versions = {each.id: each.version for each in deployed}

    def _send(self, body: str, headers: Mapping[str, str]) -> tuple[int, Mapping[str, str], bytes]:
        wanted = {name: value for name, value in headers.items() if name in ("Content-Type", PROBE_HEADER)}
        try:
            response = self._rest.send(
                "POST", f"v1/{self._name}:rawPredict", again=False, data=body.encode(), headers=wanted
            )
        except CloudError as error:
            raise DeploymentError(f"{self.url}: {error.what}", fix=error.fix) from error
        said = response.headers
        version = self._versions.get(said.get(_DEPLOYED_BY, ""), "")
        return response.status_code, {**said, "X-Model-Version": version}, response.content


def _first(stands: Stands, version: str, digest: str) -> Deployed | None:
    """Where a version is deployed; of several, that a lost answer may have made, always the same."""
    name = name_of(version, digest)
    return next((each for each in stands.deployed if each.name == name), None)


def _shares(stands: Stands, wanted: Mapping[str, str], traffic: Traffic) -> dict[str, int]:
    """The share of each deployed id, of a hundred."""
    shares = {}
    for version, digest in wanted.items():
        found = _first(stands, version, digest)
        if found is None:
            raise DeploymentError(f"version {version} was deployed, and is there no more", fix="clear the task")
        share = traffic.share if version == traffic.candidate else 100 - traffic.share
        shares[found.id] = share
    return shares


def _kept(ledger: Ledger) -> str | None:
    """The champion before, while nobody has seen the new one serve; else None."""
    for entry in reversed(ledger.entries()):
        if entry.kind == "deployment" and entry.version == entry.champion_after:
            return None
        if entry.kind in MOVES:
            return entry.champion_before
    return None
