"""What speaks to Google Cloud: who we are there, and REST. Nothing here imports Airflow or a heavy client.

Vertex AI's own client costs some 2.6 CPU s and 190 MiB in each process that imports it; a look at a job is one small
request, and the session here costs a tenth of a second.
"""
