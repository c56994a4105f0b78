"""``python -m airflow_mlops`` is the command ``airflow-mlops``."""

import sys

from airflow_mlops.cli import main

sys.exit(main())
