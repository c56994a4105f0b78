"""Pipelines to DAGs."""

from airflow_mlops.factory.build import build_dags
from airflow_mlops.factory.load import calling_folder, configured_environment, load_dags
from airflow_mlops.factory.release import load_release

__all__ = ["build_dags", "calling_folder", "configured_environment", "load_dags", "load_release"]
