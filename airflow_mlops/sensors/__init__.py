"""Sensors that watch a model in use."""

from airflow_mlops.sensors.drift import DataDriftSensor

__all__ = ["DataDriftSensor"]
