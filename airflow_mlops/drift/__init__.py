"""What moved: profiles, statistics, and the decision whether a window has drifted. No Airflow."""
