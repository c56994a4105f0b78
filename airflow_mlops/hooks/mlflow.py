"""The connection type ``mlflow``: where the tracking server is, and the credentials that travel beside a Call."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

from airflow.sdk import BaseHook
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowNotFoundException

from airflow_mlops.call.wire import RegistryRef
from airflow_mlops.errors import RegistryError
from airflow_mlops.registry.mlflow_api import TIMEOUT_VARIABLE, without_password


class MlflowHook(BaseHook):
    """Reads an ``mlflow`` connection.

    The host is the tracking URI (``http://127.0.0.1:5000``, ``sqlite:////srv/mlflow.db``) or a bare host name. A login
    and password are sent as HTTP basic authentication, a password alone as a bearer token.

    :param mlflow_conn_id: the connection's id.
    """

    conn_name_attr = "mlflow_conn_id"
    default_conn_name = "mlflow_default"
    conn_type = "mlflow"
    hook_name = "MLflow"

    def __init__(self, mlflow_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mlflow_conn_id = mlflow_conn_id
        self._connection: Any = None

    @property
    def connection(self) -> Any:
        """The Airflow connection.

        Raises:
            RegistryError: when there is none of that id, or it names no host.
        """
        if self._connection is None:
            try:
                self._connection = self.get_connection(self.mlflow_conn_id)
            except AirflowNotFoundException as error:
                raise RegistryError(
                    f"there is no connection {self.mlflow_conn_id!r}",
                    fix=f"airflow connections add {self.mlflow_conn_id} --conn-type mlflow "
                    "--conn-host http://127.0.0.1:5000",
                ) from error
        if not self._connection.host:
            raise RegistryError(
                f"the connection {self.mlflow_conn_id!r} names no tracking server", fix="set its host: http://HOST:PORT"
            )
        return self._connection

    @property
    def uri(self) -> str:
        """The tracking URI.

        Raises:
            RegistryError: when it holds a password, for it is part of Calls and logs.
        """
        host: str = self.connection.host
        if "://" not in host:
            host = f"{self.connection.schema or 'http'}://{host}"
        where = f"the host of the connection {self.mlflow_conn_id!r}"
        fix = "give it as the connection's password; name a database through `mlflow server`"
        parts = urlsplit(without_password(host, where, fix))
        port = self.connection.port
        if port and parts.scheme in ("http", "https") and ":" not in parts.netloc.rpartition("]")[2]:
            host = parts._replace(netloc=f"{parts.netloc}:{port}").geturl().rstrip("/")
        return host

    def registry(self, pipeline: str) -> RegistryRef:
        """Which registry, model and experiment a pipeline uses; nothing secret is in it."""
        ui_url = self.connection.extra_dejson.get("ui_url") or None
        return RegistryRef(uri=self.uri, model=pipeline, experiment=pipeline, ui_url=ui_url)

    def environment(self) -> dict[str, str]:
        """The credentials and limits, as the environment variables that MLflow itself reads."""
        connection = self.connection
        timeout = str(connection.extra_dejson.get("timeout") or 30)
        # MLflow's own client would otherwise try for four minutes; Airflow's retries are the ones people see.
        found = {
            TIMEOUT_VARIABLE: timeout,
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
            "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
            # Airflow takes what is written to standard error for errors.
            "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        }
        if connection.password and connection.login:
            found |= {
                "MLFLOW_TRACKING_USERNAME": connection.login,
                "MLFLOW_TRACKING_PASSWORD": connection.password,
            }
        elif connection.password:
            found["MLFLOW_TRACKING_TOKEN"] = connection.password
        return found

    def test_connection(self) -> tuple[bool, str]:
        """Say whether the server answers and takes the credentials, for the button of the connection form."""
        from airflow_mlops.backends.local import environment
        from airflow_mlops.registry.mlflow_api import mlflow_api

        try:
            with environment({**self.environment(), TIMEOUT_VARIABLE: "5"}):
                mlflow_api(self.uri).aliases("airflow-mlops-connection-test")
        except Exception as error:
            return False, str(error)
        return True, f"MLflow answers at {self.uri}"


def store_root(store: str | None = None) -> str:
    """The root of the artifact store: the one given, or that of ``[airflow_mlops] store``."""
    root = store or conf.get("airflow_mlops", "store", fallback="mlops")
    if "://" in root or os.path.isabs(root):
        return str(root)
    home = os.environ.get("AIRFLOW_HOME", os.path.expanduser("~/airflow"))
    return os.path.join(home, root)
