from airflow.plugins_manager import AirflowPlugin


class MlopsPlugin(AirflowPlugin):
    name = "airflow_mlops"
