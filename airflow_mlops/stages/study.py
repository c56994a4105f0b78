"""The study of a tuning: a journal that outlives its workers, and samplers that go on where they were.

Each line of the journal is written under a lock that the kernel gives back when its holder dies. A trial belongs to one
of the study's parts from the line that begins it; a worker that comes back goes on with its part's open trials, under
their own numbers and with the params that they had, so a study has as many trials as were asked for, however often its
workers were killed.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from airflow_mlops.call.store import Store, cache_folder, reaching
from airflow_mlops.call.wire import Call, digest_of
from airflow_mlops.errors import StoreError
from airflow_mlops.spec.metrics import METRICS
from airflow_mlops.spec.space import Choices, Range, grid_point, grid_size
from airflow_mlops.spec.stages import Tune

optuna.logging.set_verbosity(optuna.logging.WARNING)

_NAME = "study"
"""The same in every journal: hyperband draws a trial's bracket from it, and equal studies must go equal ways."""
_SNAPSHOT_S = 5.0
_GRID = 10_000


class FileLock(JournalFileOpenLock):
    """A lock that the kernel gives back when its holder is killed, and that mends what a killed writer left.

    Optuna's own is a file, which a killed holder leaves behind; half a minute later another takes it by force.
    """

    def __init__(self, journal: Path) -> None:
        super().__init__(str(journal))
        self._journal, self._handle = journal, -1

    def acquire(self) -> bool:
        """Wait for the lock; cut off a line that was not written to its end."""
        handle = os.open(f"{self._journal}.lock", os.O_CREAT | os.O_RDWR, 0o666)
        fcntl.flock(handle, fcntl.LOCK_EX)
        self._handle = handle
        _cut_torn_line(self._journal)
        return True

    def release(self) -> None:
        """Give the lock back, also for processes that were forked meanwhile."""
        handle = self._handle
        fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def _cut_torn_line(journal: Path) -> None:
    with open(journal, "rb+") as file:
        size = file.seek(0, os.SEEK_END)
        if size and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


class _BySeedAndNumber(BaseSampler):
    """A sampler made anew for each trial, seeded by the trial's number.

    What it draws depends on the trials before and on nothing that a process remembers, so a study that was interrupted
    goes on as it would have.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make, self._seed = make, seed
        self._inner = make(seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._inner = self._make(int(digest_of([self._seed, trial.number])[7:15], 16))
        self._inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._inner.sample_independent(study, trial, param_name, param_distribution)


class _Grid(BaseSampler):
    """The points of the grid in an order drawn once; a trial takes the point of its number.

    Optuna's own takes any point not yet taken, so that two workers may take the same one.
    """

    def __init__(self, space: Mapping[str, Range | Choices], seed: int) -> None:
        size = grid_size(space) or 0
        self._space, self._order = space, Random(seed).sample(range(size), min(size, _GRID))  # noqa: S311

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        place = grid_point(self._space, self._order[trial.number % len(self._order)])[param_name]
        dimension = self._space[param_name]
        return dimension.labels[place] if isinstance(dimension, Choices) else dimension.value(place)


def _sampler(params: Tune) -> BaseSampler:
    if params.sampler == "grid":
        return _Grid(params.space, params.seed)
    if params.sampler == "random":
        return _BySeedAndNumber(lambda seed: RandomSampler(seed=seed), params.seed)
    together = params.jobs * params.parts > 1
    return _BySeedAndNumber(lambda seed: TPESampler(seed=seed, constant_liar=together), params.seed)


def _pruner(params: Tune) -> optuna.pruners.BasePruner:
    if params.pruner == "median":
        return optuna.pruners.MedianPruner()
    if params.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=params.folds, reduction_factor=2)
    return optuna.pruners.NopPruner()


def study_id(call: Call, params: Tune) -> str:
    """The same for every try and part of one tuning: of the run, and of what decides the answer of a trial."""
    passing = {"trials", "jobs", "timeout", "parts", "part", "study"}
    asked = params.model_dump(mode="json", exclude=passing)
    inputs = {name: ref.digest for name, ref in call.inputs.items()}
    window = call.window.key if call.window else None
    code = call.code.digest if call.code else None
    return digest_of([call.pipeline, window, params.study or call.run, asked, inputs, code])[7:39]


class TuningStudy:
    """One part's view of a study.

    Args:
        call: the Call of the stage.
        params: its params.
        store: where the journal lies; beside a remote store it lies on this machine, and is copied there as it grows.
        metric: what is measured.
    """

    def __init__(self, call: Call, params: Tune, store: Store, metric: str) -> None:
        self.params, self.id = params, study_id(call, params)
        self._store, self._copy = store, ("studies", call.pipeline, f"{self.id}.journal")
        self._copied = 0.0
        if store.local:
            self._journal = Path(store.uri(*self._copy))
            with reaching(str(self._journal)):
                self._journal.parent.mkdir(parents=True, exist_ok=True)
        elif params.parts > 1:
            raise StoreError(
                f"tasks on several machines cannot share a study in {store.root}",
                fix="leave out tune.as_tasks and set tune.jobs, or put the store on a disk that all workers share",
            )
        else:
            self._journal = cache_folder("studies") / f"{self.id}.journal"
            self._fetch()
        self._storage = JournalStorage(JournalFileBackend(str(self._journal), FileLock(self._journal)))
        direction = StudyDirection.MAXIMIZE if METRICS[metric].more_is_better else StudyDirection.MINIMIZE
        optuna.create_study(storage=self._storage, study_name=_NAME, direction=direction, load_if_exists=True)

    def open(self) -> optuna.Study:
        """The study as Optuna knows it, with a sampler of its own: one for each trial, for trials may run at once."""
        return optuna.load_study(
            study_name=_NAME, storage=self._storage, sampler=_sampler(self.params), pruner=_pruner(self.params)
        )

    @property
    def total(self) -> int:
        """How many trials the whole study has: what was asked for, or all points of a smaller grid."""
        size = grid_size(self.params.space) if self.params.sampler == "grid" else None
        return min(self.params.trials, size or self.params.trials)

    @property
    def share(self) -> int:
        """How many trials this part sees to."""
        part, parts = self.params.part, self.params.parts
        return self.total if part is None else self.total * (part + 1) // parts - self.total * part // parts

    def trials(self) -> list[FrozenTrial]:
        """The trials that this part sees to: its own, or all of them where it is no part."""
        found = self.open().get_trials(deepcopy=False)
        part = self.params.part
        return [trial for trial in found if part is None or trial.user_attrs.get("part") == part]

    def begin(self) -> int:
        """Begin a trial of this part, in one line of the journal; return its id."""
        begun = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs={"part": self.params.part})
        return self._storage.create_new_trial(self._storage.get_study_id_from_name(_NAME), template_trial=begun)

    def suggest(self, trial_id: int) -> tuple[Trial, dict[str, Any]]:
        """A trial with its params: those that it had already, and the sampler's for the rest."""
        trial = Trial(self.open(), trial_id)
        return trial, {name: _suggest(trial, name, each) for name, each in self.params.space.items()}

    def values(self, trial: FrozenTrial) -> dict[str, Any]:
        """A trial's params as the model gets them."""
        return {name: decode(self.params.space[name], value) for name, value in trial.params.items()}

    def keep(self, *, now: bool = False) -> None:
        """Copy the journal to a remote store, unless that was done a moment ago."""
        if self._store.local or (not now and time.monotonic() - self._copied < _SNAPSHOT_S):
            return
        uri = self._store.uri(*self._copy)
        with reaching(uri):
            self._store.fs.pipe_file("/".join((self._store.path, *self._copy)), self._journal.read_bytes())
        self._copied = time.monotonic()

    def _fetch(self) -> None:
        """Take the copy where it knows more than this machine does: a journal only ever grows."""
        path = "/".join((self._store.path, *self._copy))
        with reaching(self._store.uri(*self._copy)):
            self._store.fs.invalidate_cache()
            if not self._store.fs.exists(path):
                return
            copy = self._store.fs.cat_file(path)
        if not self._journal.exists() or self._journal.stat().st_size < len(copy):
            beside = self._journal.with_suffix(f".{os.getpid()}.part")
            beside.write_bytes(copy)
            os.replace(beside, self._journal)


def _suggest(trial: Trial, name: str, dimension: Range | Choices) -> Any:
    if isinstance(dimension, Choices):
        return decode(dimension, trial.suggest_categorical(name, dimension.labels))
    low, high, log = dimension.low, dimension.high, dimension.log
    if dimension.whole:
        return trial.suggest_int(name, int(low), int(high), step=int(dimension.step or 1), log=log)
    return trial.suggest_float(name, low, high, step=dimension.step, log=log)


def decode(dimension: Range | Choices, value: Any) -> Any:
    """A param as the model gets it: in a study, a choice stands as its text."""
    if isinstance(dimension, Choices):
        return dimension.choices[dimension.labels.index(value)]
    return value
