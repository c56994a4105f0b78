#!/usr/bin/env bash
# A role and a database for each of those that keep something here; the image runs this once, when its volume is empty.
set -euo pipefail

for name in airflow celery mlflow; do
    # psql reads the password itself: it stands in no argument and in no variable of the environment.
    psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres <<SQL
\set password \`cat /run/secrets/${name}_db_password\`
CREATE ROLE $name LOGIN PASSWORD :'password';
CREATE DATABASE $name OWNER $name;
REVOKE ALL ON DATABASE $name FROM PUBLIC;
SQL
done
