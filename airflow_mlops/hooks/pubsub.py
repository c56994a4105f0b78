"""Pub/Sub by the provider's own hooks, in this package's errors.

Google's client is imported where a subscription is opened or a message is published, and nowhere else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from airflow_mlops.errors import CloudAccessError, CloudError, CloudNotFoundError, CloudUnreachableError, MlopsError
from airflow_mlops.registry.messages import Message, message_of

_AT_ONCE = 100
_PULL_SECONDS = 60.0
_SECONDS = 20.0


class Subscription:
    """One subscription, pulled from without blocking an event loop.

    Args:
        name: ``projects/P/subscriptions/S``.
        connection: the id of the Airflow connection that says who asks.
    """

    def __init__(self, name: str, connection: str) -> None:
        self.name, self.connection = name, connection
        _, self.project, _, self.id = name.split("/")
        self._hook: Any = None

    async def _open(self) -> Any:
        if self._hook is None:
            hook = await asyncio.to_thread(_async_hook, self.connection, self.project)
            sync = await hook.get_sync_hook()
            # Kept by the hook. Where there is no key, the machine's own metadata is asked, which takes its time.
            await asyncio.to_thread(sync.get_credentials)
            self._hook = hook
        return self._hook

    async def pull(self) -> list[tuple[str, Message]]:
        """Wait up to a minute for messages; return them with the ids that acknowledge them.

        Raises:
            CloudError: as `airflow_mlops.google.rest.Rest.ask` does.
        """
        try:
            hook = await self._open()
            received = await hook.pull(
                subscription=self.id, project_id=self.project, max_messages=_AT_ONCE, timeout=_PULL_SECONDS
            )
        except Exception as error:
            if type(_cause(error)).__name__ == "DeadlineExceeded":
                return []
            raise self._told(error) from None
        return [
            (
                each.ack_id,
                message_of(
                    each.message.message_id,
                    each.message.publish_time,
                    dict(each.message.attributes),
                    bytes(each.message.data),
                ),
            )
            for each in received
        ]

    async def acknowledge(self, ids: Sequence[str]) -> None:
        """Say that messages are kept. One whose acknowledgement is lost comes again.

        Raises:
            CloudError: as `pull` does.
        """
        try:
            await (await self._open()).acknowledge(
                subscription=self.id, project_id=self.project, ack_ids=list(ids), timeout=_SECONDS
            )
        except Exception as error:
            raise self._told(error) from None

    def _told(self, error: Exception) -> MlopsError:
        return _told(
            error,
            self.name,
            self.connection,
            may=f"gcloud pubsub subscriptions add-iam-policy-binding {self.id} --project {self.project} "
            "--role roles/pubsub.subscriber --member serviceAccount:ACCOUNT",
            make=f"gcloud pubsub subscriptions create {self.id} --project {self.project} --topic TOPIC, "
            "or correct retrain.triggers",
        )


def _async_hook(connection: str, project: str) -> Any:
    from airflow.providers.google.cloud.hooks.pubsub import PubSubAsyncHook

    return PubSubAsyncHook(project_id=project, gcp_conn_id=connection)


def publish(topic: str, connection: str, messages: Sequence[tuple[bytes, Mapping[str, str]]]) -> None:
    """Publish messages, each at least once; give up after some 20 s.

    Args:
        topic: ``projects/P/topics/T``.
        connection: the id of the Airflow connection that says who publishes.
        messages: bodies and attributes.

    Raises:
        CloudError: as `Subscription.pull` does.
    """
    from airflow.providers.google.cloud.hooks.pubsub import PubSubHook
    from google.api_core.retry import Retry

    try:
        client = PubSubHook(gcp_conn_id=connection).get_conn()
        # The hook's own `publish` would wait for ten minutes for a topic that is down.
        retry = Retry(timeout=_SECONDS)
        futures = [
            client.publish(topic, body, retry=retry, timeout=_SECONDS, **attributes) for body, attributes in messages
        ]
        for future in futures:
            future.result(timeout=2 * _SECONDS)
    except Exception as error:
        _, project, _, name = topic.split("/")
        raise _told(
            error,
            topic,
            connection,
            may=f"gcloud pubsub topics add-iam-policy-binding {name} --project {project} "
            "--role roles/pubsub.publisher --member serviceAccount:ACCOUNT",
            make=f"gcloud pubsub topics create {name} --project {project}, or correct google.topic",
        ) from None


def _cause(error: BaseException) -> BaseException:
    """What Google's client has raised, inside of the provider's own error."""
    inner = error.args[1] if type(error).__name__ == "PubSubException" and len(error.args) > 1 else error
    return inner if isinstance(inner, BaseException) else error


def _told(error: Exception, what: str, connection: str, *, may: str, make: str) -> MlopsError:
    from airflow.sdk.exceptions import AirflowNotFoundException
    from google.api_core.exceptions import (
        ClientError,
        Forbidden,
        GoogleAPICallError,
        NotFound,
        TooManyRequests,
        Unauthenticated,
    )
    from google.auth.exceptions import GoogleAuthError, TransportError

    found = _cause(error)
    words = f"{what}: {getattr(found, 'message', None) or type(found).__name__}"[:400]
    if isinstance(found, MlopsError):
        return found
    if isinstance(found, (Forbidden, Unauthenticated)):
        return CloudAccessError(f"{words} (connection {connection!r})", fix=may)
    if isinstance(found, NotFound):
        return CloudNotFoundError(words, fix=make)
    if isinstance(found, AirflowNotFoundException):
        return CloudAccessError(
            f"there is no connection {connection!r}",
            fix=f"airflow connections add {connection} --conn-type google_cloud_platform",
        )
    if isinstance(found, GoogleAuthError) and not isinstance(found, TransportError):
        # The library's own words may quote the key.
        return CloudAccessError(
            f"the connection {connection!r} leads to no credentials: {type(found).__name__}",
            fix="correct its key, or give this machine a service account and the connection none",
        )
    if isinstance(found, ClientError) and not isinstance(found, TooManyRequests):
        return CloudError(words)
    if isinstance(found, GoogleAPICallError):
        return CloudUnreachableError(words)
    return CloudUnreachableError(f"{what} cannot be asked: {type(found).__name__}: {found}"[:400])
