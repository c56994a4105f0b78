"""Where an environment's releases lie: beside each other in a folder or bucket, with one small file that names one.

    releases/NAME/RELEASE/...         the files of a release; never changed
    releases/NAME/log/00000001.json   what was released, when and by whom; each entry created once
    NAME_release.py                   the pointer: the DAG file that Airflow reads, which loads one release

To release is to replace the pointer, which is one atomic write. Whoever may do so is decided by the log: the number of
an entry can be taken once.
"""

from __future__ import annotations

import os
import shutil
import uuid
from abc import ABC, abstractmethod
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from airflow_mlops.call.store import Store, reaching
from airflow_mlops.delivery.bundle import Bundle, laid, short
from airflow_mlops.errors import DeliveryError, MlopsError, ReleaseConflictError
from airflow_mlops.registry.log import AppendLog

RELEASES = "releases"
_IGNORE = "# Airflow loads releases by the pointers above only.\n[A-Za-z0-9]*\n"
"""For Airflow, in a form that both syntaxes of its ignore files have."""
_MARK = "airflow-mlops deploy"
_SIZES = 997

Action = Literal["deploy", "promote", "rollback"]


class Entry(BaseModel):
    """One line of an environment's release log."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    """Its place, from 1."""
    kind: Literal["started", "deployed", "failed"]
    """A release is ``started``, and ends ``deployed`` or ``failed``: then what ran before was put back."""
    action: Action
    """What was asked for."""
    digest: str
    """The digest of the release."""
    version: str
    """Its version."""
    commit: str | None = None
    """The Git commit that it was made of."""
    source: str
    """Where it came from: a file, or another environment."""
    before: str | None = None
    """The digest of what ran before."""
    pipelines: tuple[str, ...] = ()
    """The pipelines that it declares."""
    by: str
    """Who released it."""
    at: datetime
    """When, in UTC."""
    until: datetime | None = None
    """Of one that has started: when it counts as lost, should nobody have ended it."""
    reason: str | None = None
    """Of one that has failed: why."""

    def ended(self, kind: Literal["deployed", "failed"], reason: str | None = None) -> Entry:
        """The entry that ends this one."""
        changes = {"number": self.number + 1, "kind": kind, "at": datetime.now(UTC), "until": None, "reason": reason}
        return self.model_copy(update=changes)


class State(NamedTuple):
    """What was seen of a name's releases."""

    entries: list[Entry]
    pointer: str | None
    """What the pointer says, or None where there is none."""
    seen: Any
    """By which the place tells whether the pointer was replaced since."""


def pointer_file(name: str) -> str:
    """The file that Airflow reads."""
    return f"{name}_release.py"


def pointer_text(name: str, version: str, digest: str, environment: str) -> str:
    """What the pointer to a release says.

    Airflow's GCS bundle, as rsync, fetches a file anew if its size differs or its time is newer than that of the copy,
    by two clocks. So that no switch is missed where they differ, pointers differ in size.
    """
    return (
        f'"""DAGs of {name} {version} for Airflow. Written by `{_MARK}`; not to be edited."""\n\n'
        "from airflow_mlops.factory import load_release\n\n"
        f'load_release("{RELEASES}/{name}/{short(digest)}", "{environment}", globals())\n'
        f"#{'-' * (int(short(digest), 16) % _SIZES)}\n"
    )


class Place(ABC):
    """Where one environment's releases lie."""

    where: str
    """What to call it."""

    @abstractmethod
    def names(self) -> list[str]:
        """The names that something was released under."""

    @abstractmethod
    def look(self, name: str) -> State:
        """What was released under a name, and what the pointer says."""

    @abstractmethod
    def bundle(self, name: str, digest: str) -> Bundle:
        """The files of a release, each held against its digest.

        Raises:
            DeliveryError: when one is missing or was changed.
        """

    @abstractmethod
    def start(self, state: State, entry: Entry, bundle: Bundle, pointer: str) -> State:
        """Put a release there, write that it has started, and replace the pointer.

        Raises:
            ReleaseConflictError: when somebody has released since ``state`` was seen.
        """

    @abstractmethod
    def finish(self, state: State, name: str, entry: Entry, pointer: str | None) -> None:
        """Make the pointer say what it should, and write how a release has ended.

        Raises:
            ReleaseConflictError: when somebody has released since ``state`` was seen.
        """


class StorePlace(Place):
    """A folder on a disk."""

    def __init__(self, root: str) -> None:
        self.store = Store(root)
        self.where = self.store.root

    def names(self) -> list[str]:
        """The names that something was released under."""
        names = [name for name in self.store.names(RELEASES) if not name.startswith(".")]
        return [name for name in names if self.store.names(RELEASES, name, "log")]

    def look(self, name: str) -> State:
        """What was released under a name, and what the pointer says."""
        text, seen = self._pointer(name)
        if text is not None and _MARK not in text:
            raise DeliveryError(
                f"{self.where}/{pointer_file(name)} was not written by {_MARK}", fix="rename it, or build with --name"
            )
        return State([Entry.model_validate(each) for each in self._log(name).entries()], text, seen)

    def bundle(self, name: str, digest: str) -> Bundle:
        """The files of a release, each held against its digest, the unpacked code as well."""
        folder = (RELEASES, name, short(digest))

        def read(path: str) -> bytes | None:
            return self.store.read_bytes(*folder, *path.split("/"))

        return laid(read, self.store.uri(*folder), digest)

    def start(self, state: State, entry: Entry, bundle: Bundle, pointer: str) -> State:
        """Put a release there, write that it has started, and replace the pointer."""
        name = bundle.manifest.name
        try:
            self.bundle(name, entry.digest)
        except DeliveryError:
            self._put(f"{RELEASES}/{name}/{short(entry.digest)}", bundle.unpacked())
        if self.store.read_bytes(RELEASES, ".airflowignore") is None:
            self._write(f"{RELEASES}/.airflowignore", _IGNORE.encode())
        self._append(name, entry)
        try:
            seen = self._switch(name, pointer, state.seen)
        except MlopsError as error:
            self._append(name, entry.ended("failed", str(error)))
            raise
        return State([*state.entries, entry], pointer, seen)

    def finish(self, state: State, name: str, entry: Entry, pointer: str | None) -> None:
        """Make the pointer say what it should, and write how a release has ended."""
        # A disk has no conditional write. Who was taken back meanwhile must not put back what others have replaced.
        if len(self._log(name).entries()) >= entry.number:
            raise self._conflict(name)
        if pointer != state.pointer:
            self._switch(name, pointer, state.seen)
        self._append(name, entry)

    def _append(self, name: str, entry: Entry) -> None:
        if not self._log(name).append(entry.number, entry.model_dump(mode="json")):
            raise self._conflict(name)

    def _log(self, name: str) -> AppendLog:
        return AppendLog(self.store, RELEASES, name, "log")

    def _conflict(self, name: str) -> ReleaseConflictError:
        return ReleaseConflictError(
            f"somebody else is releasing {name!r} in {self.where}", fix="airflow-mlops release list, then again"
        )

    def _pointer(self, name: str) -> tuple[str | None, Any]:
        content = self.store.read_bytes(pointer_file(name))
        return (content.decode() if content is not None else None), None

    def _switch(self, name: str, text: str | None, seen: Any) -> Any:
        """Replace the pointer, or remove it, at once."""
        file = os.path.join(self.store.path, pointer_file(name))
        if text is None:
            with suppress(FileNotFoundError):
                os.unlink(file)
        else:
            self._write(pointer_file(name), text.encode())
        return None

    def _write(self, path: str, content: bytes) -> None:
        file = Path(self.store.path, path)
        beside = file.with_name(f".{file.name}.{uuid.uuid4().hex}.part")
        with reaching(str(file)):
            try:
                beside.write_bytes(content)
                os.replace(beside, file)
            finally:
                beside.unlink(missing_ok=True)

    def _put(self, folder: str, files: dict[str, bytes]) -> None:
        """Let a folder appear, whole."""
        final = Path(self.store.path, folder)
        beside = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
        try:
            beside.mkdir(parents=True)
        except OSError as error:
            what = f"the folder {self.where}, where releases are to lie, cannot be made: {error.strerror}"
            raise DeliveryError(what, fix="correct 'dags' in deploy.yaml, or make the folder there") from error
        with reaching(str(final)):
            try:
                for path, content in files.items():
                    file = beside / path
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(content)
                if final.exists():  # what is there is not what its name says
                    final.rename(beside.with_name(f"{beside.name}.old"))
                beside.rename(final)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
                shutil.rmtree(beside.with_name(f"{beside.name}.old"), ignore_errors=True)
