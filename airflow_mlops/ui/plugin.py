"""The plugin that Airflow loads: pages of its own UI."""

from airflow.plugins_manager import AirflowPlugin


class MlopsPlugin(AirflowPlugin):
    """What this package adds to Airflow's UI."""

    name = "airflow_mlops"
