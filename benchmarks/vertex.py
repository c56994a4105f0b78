"""Jobs on Vertex AI side by side: what each costs in a real triggerer while it waits, and whether others are held up.

Vertex AI is a stand-in of the tests that answers at once. The tasks are rows of the database, as deferred tasks leave
them, for to submit so many takes as many workers.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from airflow_mlops.backends.base import Handle
from airflow_mlops.call.wire import Call
from airflow_mlops.cli.services import Services
from benchmarks.cost import MIB, compiled, python
from benchmarks.sensors import CROWD, DEFER, cpu, dags_of, memory, running
from benchmarks.table import Row, Table
from tests.loopback.rest import Asked, RestService, route

JOBS = 200
POLL = 10.0
"""As operators look by default."""
_TRIGGER = "airflow_mlops.triggers.job.JobTrigger"
_GOOGLE = {"project": "benchmark", "region": "us-central1", "image": "europe-docker.pkg.dev/benchmark/r/stage:1"}
_BLOCKED = "async thread was blocked"


class _Running(RestService):
    """Jobs that go on for ever."""

    @route("GET", "v1/{name=projects/*/locations/*/customJobs/*}")
    def get(self, asked: Asked, name: str) -> dict[str, Any]:
        return {"state": "JOB_STATE_RUNNING"}


def measure(table: Table, home: Path, count: int = JOBS) -> None:
    """Let so many jobs be waited for in a real triggerer."""
    folder = home / "dags"
    folder.mkdir(parents=True)
    (folder / "crowd.py").write_text(CROWD)
    with _Running() as vertex:
        environment = {
            **compiled(None),
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_AIPLATFORM": vertex.url,
            "AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT": json.dumps(
                {"conn_type": "google_cloud_platform", "extra": {"is_anonymous": True}}
            ),
        }
        with Services(home, folder, environment=environment) as services:
            services.start()
            services.wait("dag-processor", lambda: "crowd" in {dag["dag_id"] for dag in dags_of(services)}, 180)
            _defer(services, home, 1, first=count)
            services.wait("triggerer", lambda: running(services) == 1, 120)
            # The one job has loaded what all of them need.
            time.sleep(3 * POLL)
            alone = memory(services)
            _defer(services, home, count - 1)
            services.wait("triggerer", lambda: running(services) == count, 180)
            time.sleep(2 * POLL)
            log = services.logs / "triggerer.log"
            # Airflow makes all that are new in one go, which is its own affair.
            known = log.read_text(errors="replace").count(_BLOCKED)
            before, asked, since = cpu(services), len(vertex.asked), time.monotonic()
            time.sleep(3 * POLL)
            seconds = time.monotonic() - since
            looks = len(vertex.asked) - asked
            busy = cpu(services) - before
            each = (memory(services) - alone) / MIB / (count - 1)
            blocked = log.read_text(errors="replace").count(_BLOCKED) - known
    table.add(Row(f"{count} jobs waited for: memory of each", f"{each:.3f} MiB", "", "", "< 1 MiB", each < 1))
    table.add(Row("  a look at one", f"{busy / max(looks, 1) * 1000:.1f} CPU ms"))
    table.add(Row("  looks in ten seconds", f"{looks / seconds * 10:.0f}"))
    table.add(Row("  all of them, waiting", f"{busy / seconds:.0%} of a core"))
    table.add(Row("  times that they blocked the event loop, waiting", f"{blocked}", "", "", "0", blocked == 0))


def _defer(services: Services, home: Path, count: int, first: int = 0) -> None:
    made = []
    for number in range(first, first + count):
        call = Call(pipeline="p", stage="train", run=f"p.train/run-{number}", store="gs://bucket/mlops")
        job = f"projects/benchmark/locations/us-central1/customJobs/{number}"
        handle = Handle(backend="vertex", job=job, call=call).model_dump(mode="json")
        made.append(
            {
                "run": f"run-{number}",
                "arguments": {"backend": "vertex", "options": _GOOGLE, "handle": handle, "poll_interval": POLL},
            }
        )
    file = home / f"crowd-{first}.json"
    file.write_text(json.dumps(made))
    python("-c", DEFER, str(file), _TRIGGER, environment=services.environment)
