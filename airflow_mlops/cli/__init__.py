"""The command ``airflow-mlops``."""

from airflow_mlops.cli.main import main

__all__ = ["main"]
