"""From the team's Airflow connection to what travels beside a Call."""

from __future__ import annotations

import json

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException

from airflow_mlops.call.connection import variable
from airflow_mlops.errors import DataError


def connection_environment(connection_id: str) -> dict[str, str]:
    """A connection as the one environment variable that `airflow_mlops.call.connection` reads.

    Raises:
        DataError: when Airflow has none of that id.
    """
    try:
        found = BaseHook.get_connection(connection_id)
    except AirflowNotFoundException as error:
        raise DataError(
            f"there is no connection {connection_id!r}",
            fix=f"airflow connections add {connection_id} --conn-uri postgresql://USER:PASSWORD@HOST/DATABASE",
        ) from error
    fields = ("conn_type", "host", "port", "login", "password", "schema", "extra")
    return {variable(connection_id): json.dumps({field: getattr(found, field) for field in fields})}
