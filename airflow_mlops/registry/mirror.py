"""The Vertex AI Model Registry as a projection of the ledger, like MLflow's aliases: whoever looks next makes it true.

What is mirrored where is kept in the store, so that a rollback or a check from the shell knows it too.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from airflow_mlops.call.store import Store
from airflow_mlops.errors import CloudError, RegistryError, StoreError
from airflow_mlops.google.models import Mirrored, Models
from airflow_mlops.google.names import VERSION_LABEL, label, labels_of
from airflow_mlops.google.operations import persistently
from airflow_mlops.registry.files import publish
from airflow_mlops.registry.models import ModelRegistry
from airflow_mlops.spec.google import Google

log = logging.getLogger(__name__)

ALIASES = ("champion", "previous", "challenger")
DEFAULT = "default"
"""Vertex AI's own alias, of what is used where no version is named."""
_FOLDER = "google"


class Mirror:
    """The versions that matter of one model in the Vertex AI Model Registry.

    Args:
        registry: the model.
        store: the artifact store.
        google: where.
    """

    def __init__(self, registry: ModelRegistry, store: Store, google: Google) -> None:
        self.registry, self.google = registry, google
        self.models = Models(google, registry.ref.model)
        # Vertex AI reads from there only.
        self.store = Store(google.store) if google.store else store

    def have(self, version: str) -> str:
        """The resource name of a version's mirror, which is made where there is none.

        Raises:
            StoreError: when the files cannot be put where Vertex AI reads them.
            CloudError: when it is refused.
        """
        return self.models.resource(persistently(lambda: self._have(self.models.versions(), version)))

    def project(self) -> None:
        """Make the mirror say what the ledger says.

        Raises:
            StoreError: when the files cannot be put where Vertex AI reads them.
            CloudError: when something is refused.
        """
        persistently(self._project)

    def differences(self) -> Iterator[tuple[str, str, bool]]:
        """What is not as the ledger says, what to do about it, and whether `project` puts it right."""
        model = self.registry.ref.model
        fix = f"airflow-mlops registry check {model} --repair"
        there, wanted = self.models.versions(), self._wanted()
        for alias, version in wanted.items():
            if version is None:
                continue
            digest = self.registry.ledger.digest(version)
            found = _among(there, version, digest)
            if found is None:
                yield f"version {version} ({alias}) is not in the Vertex AI Model Registry", fix, True
            elif not _labelled(found, model, version, digest):
                yield f"version {version} has lost its labels in the Vertex AI Model Registry", fix, True
            for other in there:
                if other.version == label(version) and not other.is_of(version, digest):
                    yield (
                        f"version {other.id} in the Vertex AI Model Registry says that it is version {version}, and "
                        "is another model",
                        f"gcloud ai models delete-version {self.models.name.rpartition('/')[2]}@{other.id} "
                        f"--region {self.google.region}",
                        False,
                    )
        for alias in (*ALIASES, DEFAULT):
            yield from self._aliases(there, alias, wanted.get("champion" if alias == DEFAULT else alias), fix)

    def _aliases(
        self, there: list[Mirrored], alias: str, version: str | None, fix: str
    ) -> Iterator[tuple[str, str, bool]]:
        holder = next((each for each in there if alias in each.aliases), None)
        if version is None:
            if holder is not None and alias != DEFAULT:
                yield f"Vertex AI's alias {alias!r} names {_told(holder)}, and the ledger none", fix, True
            return
        if holder is None or not holder.is_of(version, self.registry.ledger.digest(version)):
            what = _told(holder) if holder else "no version"
            yield f"Vertex AI's alias {alias!r} names {what}, and the ledger {version}", fix, True

    def _wanted(self) -> dict[str, str | None]:
        ledger = self.registry.ledger
        return {**ledger.aliases(), "challenger": ledger.traffic().candidate}

    def _project(self) -> None:
        wanted = self._wanted()
        there = self.models.versions()
        if wanted["champion"] is None and not there:
            return
        # The champion first: where the rest fails, what counts most is there.
        for version in dict.fromkeys(each for each in wanted.values() if each):
            found = self._have(there, version)
            digest = self.registry.ledger.digest(version)
            if not _labelled(found, self.registry.ref.model, version, digest):
                self.models.relabel(found, {**found.labels, **labels_of(self.registry.ref.model, version, digest)})
            aliases = [alias for alias, its in wanted.items() if its == version]
            aliases += [DEFAULT] if version == wanted["champion"] else []
            missing = [alias for alias in aliases if alias not in found.aliases]
            if missing:
                self.models.name_by(found, missing)
        gone = [alias for alias in ALIASES if wanted[alias] is None]
        for each in there:
            if taken := [f"-{alias}" for alias in gone if alias in each.aliases]:
                self.models.name_by(each, taken)

    def _have(self, there: list[Mirrored], version: str) -> Mirrored:
        digest = self.registry.ledger.digest(version)
        return _among(there, version, digest) or self.models.upload(version, digest, self.files(version, digest))

    def files(self, version: str, digest: str) -> str:
        """The folder of a version's files where Vertex AI reads them; they are put there where they are not.

        Raises:
            StoreError: when the store is not on ``gs://``.
        """
        if not self.store.root.startswith("gs://"):
            raise StoreError(
                f"Vertex AI reads models from gs:// only, and the store is {self.store.root}",
                fix="google: {bucket: NAME}",
            )
        api, ref = self.registry.api, self.registry.ref
        return publish(ref.uri, api.version(ref.model, version), digest, self.store)


def mirror_of(registry: ModelRegistry, store: Store, google: Google | None = None) -> Mirror | None:
    """The mirror that is declared, else the one that a run has declared before; None where there is none.

    Args:
        registry: the model.
        store: the artifact store.
        google: the pipeline's section. One without an image mirrors nothing: what would serve its models is not known.
    """
    place = (_FOLDER, f"{registry.ref.model}.json")
    kept = store.read_json(*place)
    if google is None:
        google = Google.model_validate(kept) if kept else None
    elif google.image and google.model_dump(mode="json") != kept:
        with store.scratch(".json") as file:
            file.write_text(google.model_dump_json(), encoding="utf-8")
            store.replace_file(file, *place)
    return Mirror(registry, store, google) if google is not None and google.image else None


def let_follow(registry: ModelRegistry, store: Store, google: Google | None = None) -> str | None:
    """Have the mirror say what the ledger says, where there is one; in words what is wrong, None where nothing is.

    The ledger has decided: that Google Cloud is down now, or refuses, takes nothing back.
    """
    try:
        mirror = mirror_of(registry, store, google)
        if mirror is not None:
            mirror.project()
    except (CloudError, StoreError, RegistryError) as error:
        log.warning("%s", error)
        return (
            f"the Vertex AI Model Registry does not follow: {error.what}; "
            f"airflow-mlops registry check {registry.ref.model} --repair makes it"
        )
    return None


def _among(there: list[Mirrored], version: str, digest: str) -> Mirrored | None:
    return next((each for each in there if each.is_of(version, digest)), None)


def _labelled(found: Mirrored, model: str, version: str, digest: str) -> bool:
    return labels_of(model, version, digest).items() <= found.labels.items()


def _told(found: Mirrored) -> str:
    return f"version {found.version}" if VERSION_LABEL in found.labels else f"its own version {found.id}"
