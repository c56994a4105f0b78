"""A bundle: one file with all that a pipeline needs elsewhere, the same byte for byte whenever it is made of the same.

Its manifest names every file by its digest, and the manifest's own digest names the release. So whoever knows that
digest knows every byte, wherever the files lie: in the bundle, in a DAGs folder, in a bucket.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from airflow_mlops.errors import DeliveryError

MANIFEST = "manifest.json"
NOT_WHOLE = "is not whole here (yet)"
"""What Airflow says of a release whose files have not all come to it, or not all as they were."""
_EPOCH = (1980, 1, 1, 0, 0, 0)
_PLAIN = re.compile(r"(?!/)(?!.*(^|/)\.{0,2}(/|$))[^\\\0]+")


class Manifest(BaseModel):
    """What a bundle holds and what it was made of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = Field(1, ge=1, le=1)
    """The version of this format."""
    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,99}$")
    """The bundle's name: releases of one name replace each other."""
    version: str
    """Its version, as Python writes versions (PEP 440)."""
    made_by: str
    """The version of airflow-mlops that made it."""
    commit: str | None = None
    """The Git commit that it was made of, where there is one."""
    dirty: bool = False
    """Whether files differed from that commit."""
    pipelines: tuple[str, ...]
    """The pipelines that it declares."""
    declarations: tuple[str, ...]
    """The files of their declarations."""
    dags: tuple[str, ...] = ()
    """The team's own DAG files; without any the declarations are loaded."""
    wheel: str | None = None
    """The user's code; None where all of it comes from installed packages."""
    code: tuple[str, ...] = ()
    """The folders that the wheel is unpacked to, so that declarations find their code beside them."""
    images: dict[str, str] = {}
    """The images that stages run in on Google Cloud, by pipeline and environment."""
    files: dict[str, str]
    """The digest of every file by its path."""

    def to_bytes(self) -> bytes:
        """The manifest as it lies in the bundle."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=1, ensure_ascii=False).encode()

    @property
    def digest(self) -> str:
        """What names the release."""
        return digest_of_bytes(self.to_bytes())

    @property
    def release(self) -> str:
        """The digest, short enough for a folder and a tag."""
        return short(self.digest)


class Bundle(NamedTuple):
    """A manifest and the files that it names."""

    manifest: Manifest
    files: Mapping[str, bytes]

    def unpacked(self) -> dict[str, bytes]:
        """Every file of a release by its path: those of the bundle, the code of the wheel, the manifest.

        Raises:
            DeliveryError: when a file of the code and one of the bundle claim the same place with other contents.
        """
        found = {**self.files, MANIFEST: self.manifest.to_bytes()}
        if self.manifest.wheel:
            with zipfile.ZipFile(io.BytesIO(self.files[self.manifest.wheel])) as wheel:
                for name in wheel.namelist():
                    if ".dist-info/" in name:
                        continue
                    content = wheel.read(name)
                    for folder in self.manifest.code:
                        path = f"{folder}/{name}" if folder else name
                        if found.setdefault(path, content) != content:
                            raise DeliveryError(f"{path} is in the wheel and in the bundle, and they differ")
        return found

    def to_bytes(self) -> bytes:
        """The bundle as a file."""
        return packed({MANIFEST: self.manifest.to_bytes(), **self.files})

    def write(self, folder: Path) -> Path:
        """Write the bundle as ``NAME-VERSION.zip``."""
        file = folder / f"{self.manifest.name}-{self.manifest.version}.zip"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file.write_bytes(self.to_bytes())
        except OSError as error:
            raise DeliveryError(f"{file} cannot be written: {error.strerror or error}") from error
        return file


def digest_of_bytes(content: bytes) -> str:
    """The digest of content."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def short(digest: str) -> str:
    """A digest as it names folders and tags."""
    return digest.removeprefix("sha256:")[:16]


def packed(files: Mapping[str, bytes]) -> bytes:
    """A zip file that depends on names and contents alone."""
    target = io.BytesIO()
    # Stored, not deflated: the bytes must not depend on a machine's zlib.
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, files[name])
    return target.getvalue()


def read_bundle(file: str | os.PathLike[str]) -> Bundle:
    """Read a bundle, and hold every file against its digest.

    Raises:
        DeliveryError: when it is none, or a file in it was changed, added or removed.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile) as error:
        why = getattr(error, "strerror", None) or error
        raise DeliveryError(f"{file} is no bundle: {why}", fix="airflow-mlops build makes one") from error
    bundle = checked(files.get, str(file))
    if extra := sorted(set(files) - set(bundle.files) - {MANIFEST}):
        raise DeliveryError(f"{file}: {', '.join(extra)} is not in its manifest", fix="build it again")
    return bundle


def checked(read: Callable[[str], bytes | None], where: str, digest: str | None = None) -> Bundle:
    """The bundle whose files can be read somewhere, after each was held against its digest.

    Args:
        read: gives the content of a path in the bundle, or None where there is nothing.
        where: what to call the place.
        digest: what the release must be. Default: any.

    Raises:
        DeliveryError: when a file is missing or was changed.
    """
    text = read(MANIFEST)
    if text is None:
        raise DeliveryError(f"{where} has no {MANIFEST}", fix="airflow-mlops build makes a bundle")
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        raise DeliveryError(f"{where}: its {MANIFEST} does not read: {error.errors()[0]['msg']}") from error
    if digest_of_bytes(text) != (digest or manifest.digest):
        raise DeliveryError(f"{where}: its {MANIFEST} was changed", fix="build and deploy it again")
    if odd := [path for path in (*manifest.files, *manifest.code) if path and not _PLAIN.fullmatch(path)]:
        raise DeliveryError(f"{where}: {odd[0]!r} is no path inside a bundle")
    files = {}
    for path, wanted in manifest.files.items():
        content = read(path)
        if content is None:
            raise DeliveryError(f"{where}: {path} is missing", fix="build and deploy it again")
        if digest_of_bytes(content) != wanted:
            raise DeliveryError(f"{where}: {path} was changed after it was built", fix="build and deploy it again")
        files[path] = content
    return Bundle(manifest, files)


def laid(read: Callable[[str], bytes | None], where: str, digest: str | None = None) -> Bundle:
    """The bundle that a release was unpacked from, as `checked` reads it; the unpacked code is held against it as well.

    Raises:
        DeliveryError: when a file is missing or was changed.
    """
    found = checked(read, where, digest)
    for path, content in found.unpacked().items():
        if path not in found.files and read(path) != content:
            raise DeliveryError(f"{where}: {path} was changed", fix="build and deploy it again")
    return found
