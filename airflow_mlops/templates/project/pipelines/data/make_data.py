"""How the months in this folder were made: customers who do not exist, from a seed. They are CC0; take what you like.

Usage: python make_data.py [FOLDER]

In June prices went up: what the model has learned of them until then no longer holds, and monitoring finds it.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

MONTHS = ("2024-01", "2024-02", "2024-03", "2024-04", "2024-05", "2024-06")
ROWS = 1000


def month(key: str) -> pd.DataFrame:
    """Return the customers who were asked about in a month, in the order of their times."""
    start = pd.Timestamp(f"{key}-01")
    random = np.random.default_rng(start.year * 12 + start.month)
    plan = random.choice(["basic", "family", "plus"], ROWS, p=[0.5, 0.2, 0.3])
    tenure = random.integers(0, 72, ROWS)
    charge = 20 + 15 * (plan == "plus") + 25 * (plan == "family") + random.normal(0, 4, ROWS)
    if key == "2024-06":
        charge = 1.35 * charge
    calls = random.poisson(1.2, ROWS)
    data = random.gamma(2.0, 6.0, ROWS)
    paperless = random.random(ROWS) < 0.6
    logit = -1.2 - 0.05 * tenure + 0.8 * calls + 0.05 * (charge - 30) - 0.04 * data - 0.3 * paperless
    minutes = np.sort(random.integers(0, 28 * 24 * 60, ROWS))
    return pd.DataFrame(
        {
            "customer": [f"{key}/{number:04}" for number in range(ROWS)],
            "asked_at": (start + pd.to_timedelta(minutes, unit="min")).astype("datetime64[us]"),
            "plan": plan,
            "tenure_months": tenure,
            "monthly_charge": charge.round(2),
            "support_calls": calls,
            "data_gb": np.where(random.random(ROWS) < 0.03, np.nan, data.round(1)),
            "paperless": paperless,
            "churned": (random.random(ROWS) < 1 / (1 + np.exp(-logit))).astype("int64"),
        }
    )


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for name in MONTHS:
        month(name).to_parquet(folder / f"{name}.parquet", index=False, compression="zstd")
