"""Secret Manager: secrets and their versions, in memory."""

from __future__ import annotations

from typing import Any

from google.cloud.secretmanager_v1 import types as S

from tests.loopback.rest import RefusedError, RestService, route


class SecretService(RestService):
    """The paths that are asked."""

    def __init__(self) -> None:
        super().__init__()
        self.secrets: dict[str, Any] = {}
        """Every secret by its name, as Google's own message."""
        self.payloads: dict[str, list[bytes]] = {}
        self.read: list[str] = []
        """Which versions were read, in order."""

    def forget(self) -> None:
        """Begin anew."""
        super().forget()
        self.secrets.clear()
        self.payloads.clear()
        self.read.clear()

    @route("POST", "v1/{parent=projects/*}/secrets", S.CreateSecretRequest, "secret")
    def create(self, asked: Any) -> Any:
        name = f"{asked.parent}/secrets/{asked.secret_id}"
        if name in self.secrets:
            raise RefusedError("ALREADY_EXISTS", f"Secret [{name}] already exists.")
        if not asked.secret.replication:
            raise RefusedError("INVALID_ARGUMENT", "secret.replication is required")
        asked.secret.name = name
        self.secrets[name], self.payloads[name] = asked.secret, []
        return asked.secret

    @route("POST", "v1/{parent=projects/*/secrets/*}:addVersion", S.AddSecretVersionRequest, "*")
    def add_version(self, asked: Any) -> Any:
        if asked.parent not in self.secrets:
            raise RefusedError("NOT_FOUND", f"Secret [{asked.parent}] not found.")
        self.payloads[asked.parent].append(asked.payload.data)
        return S.SecretVersion(name=f"{asked.parent}/versions/{len(self.payloads[asked.parent])}")

    @route("GET", "v1/{name=projects/*/secrets/*/versions/*}:access", S.AccessSecretVersionRequest)
    def access(self, asked: Any) -> Any:
        secret, _, number = asked.name.partition("/versions/")
        if secret not in self.secrets:
            raise RefusedError("NOT_FOUND", f"Secret [{secret}] not found or has no versions.")
        self.read.append(asked.name)
        payload = S.SecretPayload(data=self.payloads[secret][int(number) - 1])
        return S.AccessSecretVersionResponse(name=asked.name, payload=payload)

    @route("DELETE", "v1/{name=projects/*/secrets/*}", S.DeleteSecretRequest)
    def delete(self, asked: Any) -> None:
        if self.secrets.pop(asked.name, None) is None:
            raise RefusedError("NOT_FOUND", f"Secret [{asked.name}] not found.")
