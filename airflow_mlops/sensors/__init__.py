"""Sensors that watch a model in use."""

from airflow_mlops.sensors.drift import DataDriftSensor
from airflow_mlops.sensors.predictions import ModelPerformanceSensor, PredictionDriftSensor

__all__ = ["DataDriftSensor", "ModelPerformanceSensor", "PredictionDriftSensor"]
