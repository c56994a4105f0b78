"""skops, for those who write or read a model: it brings scikit-learn, and others only ask about models."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    # While it is imported, skops looks through every module there is, and Airflow's deprecated names complain.
    warnings.simplefilter("ignore")
    from skops.io import dump, get_untrusted_types, load

__all__ = ["dump", "get_untrusted_types", "load"]
