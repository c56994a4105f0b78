"""What a triggerer watches: cheap facts only. Nothing is computed here."""

from airflow_mlops.triggers.job import JobTrigger
from airflow_mlops.triggers.pubsub import PubsubTrigger
from airflow_mlops.triggers.window import WindowTrigger

__all__ = ["JobTrigger", "PubsubTrigger", "WindowTrigger"]
