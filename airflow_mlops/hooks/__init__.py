"""From an Airflow connection to a configured registry or store."""

from airflow_mlops.hooks.mlflow import MlflowHook

__all__ = ["MlflowHook"]
