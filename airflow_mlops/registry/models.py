"""The model registry as the product sees it: runs found again, versions made once, aliases that follow the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from urllib.parse import quote

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import Call, RegistryRef
from airflow_mlops.errors import ModelNotFoundError, RegistryError
from airflow_mlops.registry.ledger import Entry, Ledger
from airflow_mlops.registry.mlflow_api import Version, mlflow_api

RUN_TAG = "mlops.run"
MODEL_DIGEST_TAG = "mlops.model_digest"
NOTE_TAG = "mlflow.note.content"
CARD_TAG = "mlops.model_card"
"""The tag of a version that says where its model card is."""
CARD = "model_card.html"
"""The model card among the artifacts of a run; the same in Markdown lies beside it."""


class ModelRegistry:
    """MLflow's registry and the ledger of one model, together."""

    def __init__(self, ref: RegistryRef, store: Store) -> None:
        self.ref = ref
        self.api = mlflow_api(ref.uri)
        self.ledger = Ledger(store, ref.model)

    @classmethod
    def of(cls, call: Call, store: Store) -> ModelRegistry:
        """The registry that a Call names.

        Raises:
            RegistryError: when it names none.
        """
        if call.registry is None:
            raise RegistryError("the stage needs a registry and was given none", fix="name the connection: registry")
        return cls(call.registry, store)

    def run_of(self, call: Call, *, suffix: str = "", tags: Mapping[str, str] | None = None) -> str:
        """The MLflow run of a pipeline run, found again by its tag or made.

        Two tries of one task follow one another, so one run is made; should two ever race, both use the older one.
        """
        identity = call.run_identity + suffix
        found = self.find_run(call, suffix=suffix)
        if found is None:
            self.api.create_run(self._experiment, call.run, {RUN_TAG: identity, **(tags or {})})
            found = self.api.find_run(self._experiment, RUN_TAG, identity)
        if found is None:
            raise RegistryError(f"MLflow at {self.ref.uri} does not find the run that was just made")
        return found

    def find_run(self, call: Call, *, suffix: str = "") -> str | None:
        """The MLflow run that a pipeline run has made, or None where it has made nothing new."""
        return self.api.find_run(self._experiment, RUN_TAG, call.run_identity + suffix)

    def run_of_model(self, source: str) -> str:
        """The MLflow run that has logged a model ``models:/m-...``.

        Raises:
            ModelNotFoundError: when it was deleted.
        """
        return self.api.run_of_model(source.removeprefix("models:/"))

    def register(self, source: str, run_id: str, digest: str, tags: Mapping[str, str]) -> Version:
        """Make a logged model a version, or find the version that a model of equal content is already."""
        for version in self.api.versions_tagged(self.ref.model, MODEL_DIGEST_TAG, digest):
            return version
        self.api.create_model(self.ref.model)
        return self.api.create_version(self.ref.model, source, run_id, {MODEL_DIGEST_TAG: digest, **tags})

    def champion(self) -> Version | None:
        """The champion, by the ledger."""
        version = self.ledger.champion()
        return self.api.version(self.ref.model, version) if version else None

    def need_champion(self) -> Version:
        """The champion.

        Raises:
            ModelNotFoundError: when nothing was promoted yet.
        """
        champion = self.champion()
        if champion is None:
            raise ModelNotFoundError(
                f"{self.ref.model!r} has no champion yet", fix="train one, and let it pass its gate"
            )
        return champion

    def set_challenger(self, version: str) -> None:
        """Name the version that has passed its gate."""
        self.api.set_alias(self.ref.model, "challenger", version)

    def project(self) -> dict[str, str]:
        """Make the aliases say what the ledger says; return them."""
        wanted = self.ledger.aliases()
        there = self.api.aliases(self.ref.model)
        if there.get("challenger") == wanted["champion"]:
            wanted["challenger"] = None
        for alias, version in wanted.items():
            if there.get(alias) != version:
                self.api.set_alias(self.ref.model, alias, version)
        return {alias: version for alias, version in {**there, **wanted}.items() if version is not None}

    def roll_back(
        self,
        to: str | None = None,
        *,
        reason: str,
        run: str,
        by: str | None = None,
        decision: str | None = None,
    ) -> Entry:
        """Put an earlier champion back, and with it what was logged with it: its preparation and drift reference.

        A retry of the run finds its own rollback and takes no second step.

        Args:
            to: the version, which was the champion once. Default: the one before.
            reason: why, in plain words.
            run: the run that does it.
            by: the person who wants it; None where no person does.
            decision: the digest of the verdict that wants it; None where a person does.

        Raises:
            ModelNotFoundError: when there is no such version to go back to, or it is gone from the registry.
            RegistryError: when the version is the champion already, is no longer the model that was promoted, or no
                reason is given.
            PromotionConflictError: when the champion has moved meanwhile.
        """
        if not reason.strip():
            raise RegistryError("a rollback needs a reason", fix="say why, for those who read the ledger later")
        entries = self.ledger.entries()
        for entry in entries:
            if (entry.kind, entry.run, entry.decision) == ("rollback", run, decision):
                self.project()
                return entry
        put_back = self._promoted(entries, to)
        version = put_back.version
        champion = self.ledger.champion()
        if version == champion:
            raise RegistryError(f"version {version} of {self.ref.model!r} is the champion already")
        there = self.api.version(self.ref.model, version).tags.get(MODEL_DIGEST_TAG)
        if put_back.model is not None and there != put_back.model:
            raise RegistryError(
                f"version {version} of {self.ref.model!r} is no longer the model that was promoted: "
                f"MLflow has {there}, and the ledger {put_back.model}",
                fix=f"go back to another one; airflow-mlops registry check {self.ref.model} tells what differs",
            )
        entry = self.ledger.record(
            "rollback",
            version=version,
            champion_before=champion,
            reasons=(reason.strip(),),
            run=run,
            by=by,
            decision=decision,
            model=there,
            window=put_back.window,
            card=put_back.card,
        )
        self.project()
        return entry

    def _promoted(self, entries: Sequence[Entry], version: str | None) -> Entry:
        """The promotion of the version that a rollback is to put back."""
        promotions = {entry.version: entry for entry in entries if entry.kind == "promotion"}
        if version is None:
            version = self.ledger.previous()
        if version is None:
            champion = self.ledger.champion()
            others = [each for each in promotions if each != champion]
            raise ModelNotFoundError(
                f"{self.ref.model!r} has no champion before {champion or 'the first one'} to go back to",
                allowed=f"with a version: {', '.join(others)}" if others else None,
            )
        if version not in promotions:
            raise ModelNotFoundError(
                f"version {version} of {self.ref.model!r} never was the champion",
                allowed=", ".join(promotions) or None,
                fix=f"airflow-mlops history {self.ref.model}, to see which were",
            )
        return promotions[version]

    def run_url(self, run_id: str, artifact: str | None = None) -> str | None:
        """Where a browser sees a run, or one of its artifacts; None where MLflow has no server."""
        if self._pages is None:
            return None
        path = f"/artifacts/{artifact}" if artifact else ""
        return f"{self._pages}/#/experiments/{self._experiment}/runs/{run_id}{path}"

    def version_url(self, version: str) -> str | None:
        """Where a browser sees a version; None where MLflow has no server."""
        if self._pages is None:
            return None
        return f"{self._pages}/#/models/{quote(self.ref.model, safe='')}/versions/{quote(version, safe='')}"

    @cached_property
    def _experiment(self) -> str:
        return self.api.experiment_id(self.ref.experiment)

    @property
    def _pages(self) -> str | None:
        base = self.ref.ui_url or self.ref.uri
        return base.rstrip("/") if base.startswith(("http://", "https://")) else None
