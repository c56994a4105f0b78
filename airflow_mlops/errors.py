"""Every error this package raises on purpose.

    MlopsError
    ├── DeclarationError            the YAML or Python declaration is wrong; carries every problem at once
    ├── CodeError                   the user's code does not import, breaks its contract, or raised
    ├── DataError                   the data cannot be used
    │   ├── DataNotFoundError       no data where the declaration says, or an empty window
    │   ├── SchemaError             a column is gone, of another type, or breaks a hard rule
    │   └── SourceUnreachableError  (worth a retry)
    ├── PromiseError                a model that was trained on a sample does not keep what its pipeline promises
    ├── GateError                   a gate could not be computed (a *failed* gate is a verdict, not an error)
    ├── RegistryError               the model registry refused
    │   ├── ModelNotFoundError      no such model, version or champion
    │   ├── PromotionConflictError  the champion moved after the gate had judged
    │   └── RegistryUnreachableError   (worth a retry)
    ├── StoreError                  an artifact is missing or is not what its digest says
    │   ├── StoreFullError          no room for what is written
    │   └── StoreUnreachableError   (worth a retry)
    ├── DeploymentError             what serves does not do as the ledger says
    │   └── TrialFailedError        a candidate on trial broke a rule, and was withdrawn
    ├── DeliveryError               a bundle or a release is not what it should be, or not where
    │   ├── ReleaseConflictError    somebody else is releasing there, or has released meanwhile
    │   ├── ReleaseFailedError      Airflow does not load it, or its smoke run failed; the one before was put back
    │   └── AirflowUnreachableError    (worth a retry)
    ├── CloudError                  Google Cloud refused
    │   ├── CloudAccessError        it lets us not in, or we may not
    │   ├── CloudNotFoundError      no such resource there
    │   └── CloudUnreachableError   (worth a retry)
    └── BackendError                a job could not be carried
        ├── JobCancelledError
        ├── JobLostError            (worth a retry)
        ├── JobFailedError          its process broke down, or raised what none of these is (worth a retry)
        ├── MemoryLimitError        it used more memory than declared
        └── RuntimeBuildError       the environment that it should run in cannot be had
            └── PackageIndexUnreachableError   (worth a retry)

An error that a retry can mend says so by ``retryable``; operators fail at once on every other one.
"""

from __future__ import annotations

from typing import Any, ClassVar


class MlopsError(Exception):
    """The base of the tree.

    Args:
        what: what is wrong, a clause without a full stop.
        where: where: ``file:line``, pipeline, stage, column; whatever the raiser knows.
        allowed: what would have been right.
        fix: what to do next, an imperative.
    """

    retryable: ClassVar[bool] = False

    def __init__(
        self, what: str, *, where: str | None = None, allowed: str | None = None, fix: str | None = None
    ) -> None:
        super().__init__(what)
        self.what, self.where, self.allowed, self.fix = what, where, allowed, fix

    def at(self, where: str) -> MlopsError:
        """Say where it happened, unless the raiser knew better; return the same error."""
        self.where = self.where or where
        return self

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        if self.allowed:
            text += f"; allowed: {self.allowed}"
        if self.fix:
            text += f"; try: {self.fix}"
        return text

    def as_json(self) -> dict[str, Any]:
        """The error as plain JSON values; `error_of` reads it back."""
        return {"type": type(self).__name__, **self.__dict__}

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.__dict__.copy(), self.args)


def _rebuild(kind: type[MlopsError], state: dict[str, Any], args: tuple[Any, ...]) -> MlopsError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


def error_of(value: dict[str, Any]) -> MlopsError:
    """The error that `MlopsError.as_json` has written; one of a type that is not known here is a `JobFailedError`."""
    kinds = [MlopsError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    named = {kind.__name__: kind for kind in kinds}
    state = {name: each for name, each in value.items() if name != "type"}
    return _rebuild(named.get(value["type"], JobFailedError), state, (value["what"],))


class DeclarationError(MlopsError):
    """A declaration that cannot be used. ``problems`` holds one line for each mistake, all of them."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class CodeError(MlopsError):
    """The user's code does not import, breaks its contract, or raised."""


class DataError(MlopsError):
    """The data cannot be used."""


class DataNotFoundError(DataError):
    """No data where the declaration says, or an empty window."""


class SchemaError(DataError):
    """A column is gone, of another type, or breaks a hard rule of the schema."""


class SourceUnreachableError(DataError):
    """The database does not answer, or the connection broke while rows were read."""

    retryable = True


class PromiseError(MlopsError):
    """A model that was trained on a sample does not keep what its pipeline promises."""


class GateError(MlopsError):
    """A gate could not be computed. A failed gate is a verdict, not an error."""


class RegistryError(MlopsError):
    """The model registry refused."""


class ModelNotFoundError(RegistryError):
    """No such model, version or champion."""


class PromotionConflictError(RegistryError):
    """The champion moved after the gate had judged against it."""


class RegistryUnreachableError(RegistryError):
    """The registry does not answer."""

    retryable = True


class StoreError(MlopsError):
    """An artifact is missing or is not what its digest says."""


class StoreFullError(StoreError):
    """No room for what is written. A retry would read everything again and meet the same full disk."""


class StoreUnreachableError(StoreError):
    """The store does not answer."""

    retryable = True


class DeploymentError(MlopsError):
    """What serves does not do as the ledger says."""


class TrialFailedError(DeploymentError):
    """A candidate on trial broke a rule, and was withdrawn."""


class DeliveryError(MlopsError):
    """A bundle or a release is not what it should be, or is not where it should be."""


class ReleaseConflictError(DeliveryError):
    """Somebody else is releasing there, or has released since it was looked at."""


class ReleaseFailedError(DeliveryError):
    """Airflow does not load the release, or its smoke run failed. What ran before was put back."""


class AirflowUnreachableError(DeliveryError):
    """Airflow's API does not answer."""

    retryable = True


class CloudError(MlopsError):
    """Google Cloud refused. ``status`` is its own word, such as ``FAILED_PRECONDITION`` or ``ALREADY_EXISTS``."""

    status = ""


class CloudAccessError(CloudError):
    """Google Cloud does not let us in, or we lack a permission."""


class CloudNotFoundError(CloudError):
    """There is no such resource."""


class CloudUnreachableError(CloudError):
    """Google Cloud does not answer, or has no room now."""

    retryable = True


class BackendError(MlopsError):
    """A job could not be carried."""


class JobCancelledError(BackendError):
    """The job was cancelled."""


class JobLostError(BackendError):
    """The job was submitted and can no longer be found."""

    retryable = True


class JobFailedError(BackendError):
    """The job's process broke down, or raised something that is no `MlopsError`."""

    retryable = True


class MemoryLimitError(BackendError):
    """The job used more memory than was declared."""


class RuntimeBuildError(BackendError):
    """The environment that a job should run in cannot be built, or lacks what the stages need."""


class PackageIndexUnreachableError(RuntimeBuildError):
    """The packages of an environment cannot be fetched now."""

    retryable = True
