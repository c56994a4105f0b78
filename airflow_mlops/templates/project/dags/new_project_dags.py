"""For Airflow: the DAGs of every pipeline in pipelines/."""

from airflow_mlops import load_dags

load_dags("../pipelines/*.yaml", globals())
