"""The model server: a light front that speaks MLflow's scoring protocol, and one process a version that answers.

The front knows no ML: it takes requests, chooses a version, and passes bytes on. A version's process has the model's
own code to itself, so two versions of one package can serve side by side. The ledger says who answers.
"""
