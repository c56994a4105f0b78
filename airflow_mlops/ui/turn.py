"""Whose turn it is in a pool: Airflow's scheduler finds the class among the plugins, by the name that a task gives it.

Airflow's own weights know the task and not the run, so among the members of a fleet the logical date decides: runs of
old dates go first for ever, and a run that an asset started, which has no date, goes first or last by the database.
"""

from __future__ import annotations

import time
from typing import Any

from airflow.task.priority_strategy import PriorityWeightStrategy

_EPOCH = 1_700_000_000
"""Seconds that every weight leaves out: the database keeps 32 bits."""
_BACKFILL = 1_000_000_000


class InTurn(PriorityWeightStrategy):
    """First come, first served: the run that was made first goes first, whatever its date and whatever started it.

    The runs of a backfill are all made at once; they go when nobody else wants the slot.
    """

    def get_weight(self, ti: Any) -> int:
        """The weight of a task; Airflow asks when the run is made, and again when the task is cleared."""
        backfilled = str(ti.run_id).startswith("backfill__")
        return _EPOCH - int(time.time()) - (_BACKFILL if backfilled else 0)
