"""Where a pipeline runs on Google Cloud, and on what."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import Field, StringConstraints

from airflow_mlops.spec.base import Duration, Section

VERTEX = "vertex"
"""The backend and the deployment target that are Vertex AI."""
STORE_TAG = "store:"
"""What the tag of a DAG begins with whose pipeline's store is declared; the store's root follows."""
JOBS = ("extract", "validate_data", "prepare", "tune", "train", "evaluate", "batch_predict")
"""The stages that may run as jobs; monitoring and the registry stay in the worker."""
SUBSCRIPTION = r"^(projects/[a-z][a-z0-9.:-]{4,62}/subscriptions/)?[A-Za-z][A-Za-z0-9._~+%-]{2,254}$"
"""A subscription of Pub/Sub: its id, or its whole name."""
TOPIC = SUBSCRIPTION.replace("subscriptions", "topics")
"""A topic of Pub/Sub: its id, or its whole name."""

Label = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_-]{0,63}$")]
"""The value of a label, in the form that Google Cloud takes."""


class Accelerator(Section):
    """The accelerators of a machine."""

    type: str = Field(pattern=r"^[A-Z0-9_]+$", examples=["NVIDIA_L4"])
    """The type, as Vertex AI names it."""
    count: int = Field(1, ge=1, le=16)
    """How many each machine has."""


class Machine(Section):
    """What a stage runs on. A stage that declares its own declares all of it."""

    machine_type: str = Field("n2-standard-4", pattern=r"^[a-z][a-z0-9-]*$")
    """The type, as Compute Engine names it."""
    accelerator: Accelerator | None = None
    """Accelerators. Default: none."""
    replicas: int = Field(1, ge=1, le=100)
    """How many machines ``train`` runs on at once, for a function that spreads over them. Each runs it; what the first
    one makes of it counts, and what the others do is thrown away. Other stages have one."""
    disk_gb: int = Field(100, ge=100, le=64_000)
    """The size of the boot disk, in GB."""
    spot: bool = False
    """Whether machines may be taken away at any time, for a fraction of the price; the stage then begins again."""
    timeout: Duration = timedelta(days=1)
    """How long a job may run before Vertex AI ends it; a task's ``execution_timeout`` may be shorter."""


class Google(Section):
    """Google Cloud, for ``backend: vertex`` and ``deploy.target: vertex``."""

    project: str = Field(pattern=r"^[a-z][a-z0-9.:-]{4,62}$", examples=["my-project"])
    """The project's id."""
    region: str = Field(pattern=r"^[a-z]+-[a-z]+[0-9]+$", examples=["europe-west1"])
    """The region of jobs, models and endpoints; the bucket should lie there too."""
    bucket: str | None = Field(None, pattern=r"^[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]$", examples=["my-bucket"])
    """The bucket that holds the pipeline's store, as ``gs://BUCKET/mlops``. Default: the configured store."""
    connection: str = Field("google_cloud_default", pattern=r"^[A-Za-z0-9_.-]+$")
    """The Airflow connection of type ``google_cloud_platform``."""
    image: str | None = Field(None, min_length=1, examples=["europe-docker.pkg.dev/p/mlops/stage@sha256:..."])
    """The image that stages run in, made of ``docker/stage.Dockerfile``; it must hold this package's version."""
    machine: Machine = Machine()
    """What stages run on."""
    stages: dict[str, Machine] = {}
    """What single stages run on instead, by their kind: ``{train: {machine_type: a2-highgpu-1g}}``."""
    service_account: str | None = Field(None, pattern=r"^[^@\s]+@[^@\s]+$")
    """The account that jobs run as. Default: the project's own for Vertex AI."""
    network: str | None = Field(None, min_length=1, examples=["projects/12345/global/networks/default"])
    """The VPC network that jobs are peered with. Default: none."""
    labels: dict[Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,62}$")], Label] = {}
    """Labels of everything that is made, for bills."""

    topic: str | None = Field(None, pattern=TOPIC, examples=["model-events"])
    """The Pub/Sub topic that hears of retrain requests and of every entry of the ledger: an id in ``project``, or
    ``projects/P/topics/T``. Default: none."""

    @property
    def topic_name(self) -> str | None:
        """The topic's whole name."""
        return whole_name(self.project, "topics", self.topic) if self.topic else None

    def machine_of(self, stage: str) -> Machine:
        """What a stage runs on."""
        return self.stages.get(stage, self.machine)

    @property
    def store(self) -> str | None:
        """The root of the pipeline's store, where it is declared."""
        return f"gs://{self.bucket}/mlops" if self.bucket else None


def out_of_reach(registry: str) -> str | None:
    """What to say of MLflow's tracking URI where no job on Google Cloud reaches it; None where one may."""
    if not registry.startswith(("sqlite:", "file:", "/")):
        return None
    return (
        f"a job on Vertex AI cannot reach the registry {registry}; try: an MLflow server that jobs reach, in the "
        "connection, or on the shell by --registry or MLFLOW_TRACKING_URI"
    )


def whole_name(project: str, kind: str, name: str) -> str:
    """The whole name of a topic or subscription, from an id in a project or from itself."""
    return name if "/" in name else f"projects/{project}/{kind}/{name}"
