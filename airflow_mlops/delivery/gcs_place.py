"""Releases in a bucket, as Cloud Composer has one. The pointer is replaced only if it is the one seen."""

from __future__ import annotations

import os
from typing import Any

from airflow_mlops.call.store import reaching
from airflow_mlops.delivery.places import StorePlace, pointer_file
from airflow_mlops.errors import ReleaseConflictError
from airflow_mlops.google.auth import credentials_of

_CONNECTION = "google_cloud_default"


class GcsPlace(StorePlace):
    """A folder in a bucket."""

    def _blob(self, name: str) -> Any:
        from google.cloud import storage

        bucket, _, folder = self.store.root.removeprefix("gs://").partition("/")
        if os.environ.get("STORAGE_EMULATOR_HOST"):
            client = storage.Client.create_anonymous_client()
        else:
            client = storage.Client(credentials=credentials_of(_CONNECTION))
        return client.bucket(bucket).blob("/".join(filter(None, (folder, pointer_file(name)))))

    def _pointer(self, name: str) -> tuple[str | None, Any]:
        from google.api_core.exceptions import NotFound

        blob = self._blob(name)
        try:
            blob.reload()
            # Of that very generation, should somebody replace it between these two requests.
            return blob.download_as_bytes(if_generation_match=blob.generation).decode(), blob.generation
        except NotFound:
            return None, 0

    def _switch(self, name: str, text: str | None, seen: Any) -> Any:
        from google.api_core.exceptions import NotFound, PreconditionFailed

        blob = self._blob(name)
        try:
            if text is None:
                blob.delete(if_generation_match=seen)
                return 0
            blob.upload_from_string(text, content_type="text/x-python", if_generation_match=seen)
        except (PreconditionFailed, NotFound) as error:
            raise ReleaseConflictError(
                f"{self.where}/{pointer_file(name)} was replaced by somebody else", fix="airflow-mlops release list"
            ) from error
        return blob.generation

    def _write(self, path: str, content: bytes) -> None:
        with reaching(self.store.uri(path)):
            self.store.fs.pipe_file(f"{self.store.path}/{path}", content)

    def _put(self, folder: str, files: dict[str, bytes]) -> None:
        """Upload files; nothing reads them before a pointer names them."""
        with reaching(self.store.uri(folder)):
            self.store.fs.pipe({f"{self.store.path}/{folder}/{path}": content for path, content in files.items()})
