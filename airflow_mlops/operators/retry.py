"""Which errors are worth a retry, said once."""

from __future__ import annotations

from typing import Any

from airflow.sdk import RetryDecision, RetryPolicy

from airflow_mlops.errors import MlopsError


class MlopsRetryPolicy(RetryPolicy):
    """Fails at once on an error that a retry cannot mend: bad data, bad code, a bad declaration.

    What may pass by itself (an unreachable registry, a lost job) and whatever this package does not know is tried again
    as often as the task's ``retries`` allow.
    """

    def evaluate(self, exception: BaseException, try_number: int, max_tries: int, context: Any = None) -> RetryDecision:
        """Decide on one error."""
        if isinstance(exception, MlopsError) and not exception.retryable:
            return RetryDecision.fail(f"{type(exception).__name__}: a retry would end the same way")
        return RetryDecision.default()
