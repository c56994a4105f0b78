#!/usr/bin/env bash
# What must be there before Airflow starts; every step may be done again, and is, with each `docker compose up`.
set -euo pipefail

airflow db migrate
# One that is there already is left as it is.
airflow users create --username admin --role Admin --firstname Admin --lastname Admin --email admin@localhost.localdomain \
    --password="$(cat /run/secrets/admin_password)" # in one word: it may begin with a dash
shopt -s nullglob
for declaration in /opt/airflow/dags/*.yaml; do
    airflow-mlops pools "$declaration" || echo "no pool was made for $declaration; Airflow starts without it" >&2
done
