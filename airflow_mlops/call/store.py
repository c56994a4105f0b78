"""The artifact store: files named by their content, and files that are created once.

Any fsspec URI serves. On a local disk a file appears by an atomic rename or link; on an object store by one conditional
write. A reader never sees half a file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from pydantic import ValidationError

from airflow_mlops.call.wire import ArtifactRef, Call, Outcome
from airflow_mlops.errors import StoreError, StoreFullError, StoreUnreachableError

_BLOCK = 1 << 20
# The last is a file beyond the process's own limit (ulimit -f).
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_CLIENTS = frozenset({"aiohttp", "gcsfs", "google"})
_LOG_IN = "gcloud auth application-default login, or give this machine a service account that may use the bucket"

VALIDATIONS = "validations"
"""Where the store keeps, by the identity of its Call, which page tells of a validation."""


@contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Turn the file system's own errors into ours: what a retry can mend, and what it cannot."""
    try:
        yield
    except FileNotFoundError as error:
        raise StoreError(f"{uri} does not exist", fix="rerun the stage that makes it") from error
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise StoreError(f"{uri} meets a file where a folder belongs, or the other way round: {error}") from error
    except PermissionError as error:
        raise StoreError(f"{uri} may not be read or written: {error}", fix="grant the worker access") from error
    except ImportError as error:
        raise StoreError(
            f"the file system of {uri} is not installed: {error}", fix="pip install the package it names"
        ) from error
    except ValueError as error:
        raise StoreError(f"{uri} is no usable URI: {error}") from error
    except OSError as error:
        _raise_if_full(error, uri)
        if str(error).startswith("Forbidden"):  # so gcsfs says what others say by a PermissionError
            raise StoreError(
                f"{uri} may not be read or written: {error}",
                fix="grant the account of this worker or job roles/storage.objectUser on the bucket",
            ) from error
        raise StoreUnreachableError(f"{uri} cannot be reached: {error}") from error
    except Exception as error:
        # The errors of some clients are no OSErrors.
        if type(error).__module__.partition(".")[0] not in _CLIENTS:
            raise
        code = str(getattr(error, "code", ""))
        if code == "401" or type(error).__name__ == "NonRetryableError":
            raise StoreError(f"{uri} does not let us in: {error}", fix=_LOG_IN) from error
        if code.startswith("4") and code not in ("408", "429"):
            raise StoreError(f"{uri} is refused: {error}") from error
        raise StoreUnreachableError(f"{uri} cannot be reached: {type(error).__name__}: {error}") from error


def _raise_if_full(error: OSError, where: str) -> None:
    if error.errno in _FULL:
        raise StoreFullError(
            f"{where} has no room for what is written: {error}",
            fix="free space there or point [airflow_mlops] store elsewhere, then clear the task: "
            "nothing half-written was kept",
        ) from error


def digest_of_file(path: str | Path) -> str:
    """The content digest of a local file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return "sha256:" + digest.hexdigest()


def age_of(info: dict[str, Any]) -> float:
    """When a file was written, in seconds, by whatever name its file system gives that; 0 where it does not tell."""
    at = next((info[name] for name in ("mtime", "updated", "LastModified", "created") if info.get(name)), 0.0)
    if isinstance(at, str):
        at = datetime.fromisoformat(at)
    return at.timestamp() if isinstance(at, datetime) else float(at)


def _share(path: str) -> None:
    """Let others read a file as the umask says; temporary files are for their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)


def create_if_absent(uri: str, data: bytes) -> bool:
    """Create a file whole, or not at all when it is there already.

    Of any number of processes exactly one gets True. A process killed at any point leaves either no file or a whole
    one.

    Raises:
        StoreError: when the file system cannot promise this.
    """
    with reaching(uri):
        fs, path = url_to_fs(uri)
        if not isinstance(fs, LocalFileSystem):
            try:
                fs.pipe_file(path, data, mode="create")
            except FileExistsError:
                return False
            return True
        folder = os.path.dirname(path)
        os.makedirs(folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=".creating-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            _share(temporary)
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            except OSError as error:
                raise StoreError(
                    f"{folder} has no hard links, so nothing there can be created exactly once: {error}",
                    fix="put the store on a local disk or an object store",
                ) from error
            return True
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)


class Store:
    """A root folder, at any fsspec URI, and what lies under it."""

    def __init__(self, root: str) -> None:
        with reaching(root):
            self.fs, path = url_to_fs(root)
        self.path = path.rstrip("/")
        self.local = isinstance(self.fs, LocalFileSystem)
        self.root = self.path if self.local else root.rstrip("/")

    def uri(self, *parts: str) -> str:
        """The URI of a place under the root."""
        return "/".join((self.root, *parts))

    def put_file(
        self, file: str | Path, kind: str, *, rows: int | None = None, schema_id: str | None = None
    ) -> ArtifactRef:
        """Take a finished local file into the store, under the name of its content. The file is moved.

        The same content is kept once; a file that is there already is left as it is.
        """
        ref = self.ref(kind, digest_of_file(file), Path(file).suffix)
        self._publish(Path(file), ref.uri, replace=False)
        return ref.model_copy(update={"rows": rows, "schema_id": schema_id})

    def ref(self, kind: str, digest: str, suffix: str) -> ArtifactRef:
        """Where this store keeps content of that digest: one artifact names another by digest, never by path."""
        name = digest.removeprefix("sha256:")
        return ArtifactRef(uri=self.uri("artifacts", kind, name[:2], name + suffix), digest=digest, kind=kind)

    def put_json(self, value: Any, kind: str) -> ArtifactRef:
        """Keep plain JSON values under the name of their content."""
        text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False)
        with self.scratch(".json") as file:
            file.write_text(text, encoding="utf-8")
            return self.put_file(file, kind)

    def replace_file(self, file: str | Path, *parts: str) -> str:
        """Put a finished local file in a named place, over what was there, at once; return its URI."""
        uri = self.uri(*parts)
        self._publish(Path(file), uri, replace=True)
        return uri

    def _publish(self, file: Path, uri: str, *, replace: bool) -> None:
        with reaching(uri):
            _, path = url_to_fs(uri)
            self.fs.invalidate_cache()
            if not replace and self.fs.exists(path):
                file.unlink(missing_ok=True)
                if self.local:
                    with suppress(OSError):  # another user's file
                        os.utime(path)  # in use: whoever prunes goes by the age
                return
            if not self.local:
                self.fs.put_file(str(file), path)
                file.unlink()
                return
            os.makedirs(os.path.dirname(path), exist_ok=True)
            folder, name = os.path.split(path)
            # Hidden from whoever reads the folder as a data set, and of this writer alone, on whatever host.
            beside = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.part")
            try:
                shutil.move(str(file), beside)
                _share(beside)
                os.replace(beside, path)
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(beside)

    @contextmanager
    def scratch(self, suffix: str) -> Iterator[Path]:
        """A local file to write to, gone afterwards unless it was moved into the store.

        Raises:
            StoreFullError: when what is done with it meets a full disk.
        """
        folder = None
        if self.local:
            folder = os.path.join(self.path, "scratch")
            with reaching(folder):
                os.makedirs(folder, exist_ok=True)
        with reaching(folder or tempfile.gettempdir()):
            handle, name = tempfile.mkstemp(suffix=suffix, dir=folder)
        os.close(handle)
        try:
            yield Path(name)
        except OSError as error:
            _raise_if_full(error, os.path.dirname(name))
            raise
        finally:
            Path(name).unlink(missing_ok=True)

    def fetch(self, ref: ArtifactRef) -> Path:
        """The artifact as a local file, after its content was held against its digest.

        Raises:
            StoreError: when it is missing or not what its digest says.
        """
        with reaching(ref.uri):
            fs, path = url_to_fs(ref.uri)
            if isinstance(fs, LocalFileSystem):
                local = Path(path)
            else:
                local = cache_folder("artifacts") / (ref.digest.removeprefix("sha256:") + Path(path).suffix)
                if not local.exists() or digest_of_file(local) != ref.digest:
                    beside = local.with_suffix(f".{os.getpid()}.part")
                    fs.get_file(path, str(beside))
                    os.replace(beside, local)
            found = digest_of_file(local)
        if found != ref.digest:
            raise StoreError(
                f"{ref.uri} holds {found}, not {ref.digest}: it was changed or cut off after it was written",
                fix="remove the file and rerun the stage that makes it",
            )
        return local

    def fetch_json(self, ref: ArtifactRef) -> Any:
        """The artifact as plain JSON values."""
        return json.loads(self.fetch(ref).read_text(encoding="utf-8"))

    def read_json(self, *parts: str) -> Any | None:
        """The JSON in a named place, or None where there is nothing."""
        uri, data = self.uri(*parts), self.read_bytes(*parts)
        if data is None:
            return None
        try:
            return json.loads(data)
        except ValueError as error:
            raise StoreError(f"{uri} is not JSON: {error}", fix="remove the file, or put back what it held") from error

    def read_bytes(self, *parts: str) -> bytes | None:
        """What stands in a named place, or None where there is nothing."""
        uri = self.uri(*parts)
        try:
            with reaching(uri):
                # In one request, past what the file system remembers of the folder.
                return bytes(self.fs.cat_file("/".join((self.path, *parts))))
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise

    def create_json(self, value: Any, *parts: str) -> bool:
        """Put JSON in a named place unless something is there; say whether it was put."""
        data = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False).encode()
        return create_if_absent(self.uri(*parts), data)

    def names(self, *parts: str) -> list[str]:
        """The names of the files and folders in a place, sorted; none where there is no such place."""
        uri = self.uri(*parts)
        try:
            with reaching(uri):
                self.fs.invalidate_cache()
                found = self.fs.ls("/".join((self.path, *parts)), detail=False)
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return []
            raise
        names = (name.rstrip("/").rsplit("/", 1)[-1] for name in found)
        return sorted(name for name in names if not name.startswith(".creating-"))

    def newest(self, most: int, *parts: str) -> list[str]:
        """The names of the newest files in a place, as far as its file system tells their age; newest first."""
        if not (names := self.names(*parts)):
            return []
        with reaching(self.uri(*parts)):
            found = self.fs.ls("/".join((self.path, *parts)), detail=True)
        age = {each["name"].rstrip("/").rsplit("/", 1)[-1]: age_of(each) for each in found}
        return sorted(names, key=lambda name: age.get(name, 0.0), reverse=True)[:most]

    def has(self, ref: ArtifactRef) -> bool:
        """Whether an artifact is there; its content is not looked at."""
        with reaching(ref.uri):
            fs, path = url_to_fs(ref.uri)
            fs.invalidate_cache()
            return bool(fs.exists(path))

    def discard(self, ref: ArtifactRef) -> None:
        """Remove an artifact; nothing happens where there is none."""
        with reaching(ref.uri):
            fs, path = url_to_fs(ref.uri)
            with suppress(FileNotFoundError):
                fs.rm_file(path)

    def remove(self, *parts: str) -> None:
        """Remove the file in a named place; nothing happens where there is none."""
        uri = self.uri(*parts)
        with reaching(uri), suppress(FileNotFoundError):
            self.fs.rm_file("/".join((self.path, *parts)))

    def read_outcome(self, call: Call) -> Outcome | None:
        """What an earlier try of this very Call came to, or None."""
        value = self.read_json("outcomes", f"{call.identity}.json")
        if value is None:
            return None
        try:
            outcome = Outcome.model_validate(value)
        except ValidationError as error:
            uri = self.uri("outcomes", f"{call.identity}.json")
            raise StoreError(f"{uri} does not read as an outcome", fix="remove the file and rerun the stage") from error
        return outcome if outcome.call_digest == call.digest else None

    def write_outcome(self, outcome: Outcome) -> None:
        """Keep an outcome where the next try and the backend find it."""
        with self.scratch(".json") as file:
            file.write_text(outcome.model_dump_json(indent=1), encoding="utf-8")
            self.replace_file(file, "outcomes", f"{outcome.identity}.json")


def cache_folder(*parts: str) -> Path:
    """A folder of this user's on this machine, for what can be made again."""
    own = Path(tempfile.gettempdir(), f"airflow-mlops-{os.getuid()}")
    own.mkdir(exist_ok=True, mode=0o700)
    if own.lstat().st_uid != os.getuid():
        # Whoever made it could put code there that we would import.
        raise StoreError(f"{own} belongs to somebody else", fix="remove it, or set TMPDIR to a folder of your own")
    folder = own.joinpath(*parts)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder
