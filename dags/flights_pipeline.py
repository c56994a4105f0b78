"""The DAGs of the flights pipeline for Airflow (train, monitor, predict), made from its declaration."""

from airflow_mlops import load_dags

load_dags("flights.yaml", globals())
