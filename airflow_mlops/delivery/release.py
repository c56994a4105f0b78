"""Releases: a bundle comes to an environment, is watched there, and stays or is taken back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from airflow_mlops.delivery.bundle import Bundle, Manifest, short
from airflow_mlops.delivery.places import Action, Entry, Place, State, pointer_file, pointer_text
from airflow_mlops.errors import DeliveryError, MlopsError, ReleaseConflictError, ReleaseFailedError

Watch = Callable[[Manifest, bool], None]
"""Waits until Airflow has loaded a release and, with ``True``, until its smoke runs have succeeded; raises when not."""


def history(entries: Sequence[Entry]) -> list[Entry]:
    """What was deployed and could be gone back to, the running one last; a rollback takes the newer ones off."""
    found: list[Entry] = []
    for entry in entries:
        if entry.kind != "deployed":
            continue
        if entry.action == "rollback":
            while found and found[-1].digest != entry.digest:
                found.pop()
            found[-1:] = [entry]
        elif found and found[-1].digest == entry.digest:
            found[-1] = entry
        else:
            found.append(entry)
    return found


def running(entries: Sequence[Entry]) -> Entry | None:
    """The release that an environment runs, by its log."""
    found = history(entries)
    return found[-1] if found else None


def unfinished(entries: Sequence[Entry]) -> Entry | None:
    """The release that has started and that nobody has ended, if there is one."""
    return entries[-1] if entries and entries[-1].kind == "started" else None


def deploy(
    place: Place,
    bundle: Bundle,
    environment: str,
    *,
    by: str,
    source: str,
    watch: Watch,
    timeout: timedelta,
    action: Action = "deploy",
) -> Entry:
    """Release a bundle: switch to it, watch it, and take it back where that goes wrong.

    Args:
        place: where the environment's releases lie.
        bundle: what is released.
        environment: the environment's name.
        by: who releases.
        source: where the bundle comes from.
        watch: waits for Airflow.
        timeout: what it may take; a release whose process was killed counts as lost after twice as long.
        action: what was asked for.

    Returns:
        The entry that says that it is deployed; an earlier one where it ran there already.

    Raises:
        ReleaseConflictError: when another release goes on there, or one of another name has one of its pipelines.
        ReleaseFailedError: when Airflow does not load it, or its smoke run fails; what ran before is back.
    """
    manifest = bundle.manifest
    state = _closed(place, manifest.name, environment, by)
    before = running(state.entries)
    wanted = pointer_text(manifest.name, manifest.version, manifest.digest, environment)
    if before and before.digest == manifest.digest and state.pointer == wanted:
        with suppress(DeliveryError):  # what is not as it was is put there anew
            place.bundle(manifest.name, before.digest)
            return before
    _claim(place, manifest, environment)
    started = Entry(
        number=len(state.entries) + 1,
        kind="started",
        action=action,
        digest=manifest.digest,
        version=manifest.version,
        commit=manifest.commit,
        source=source,
        before=before.digest if before else None,
        pipelines=manifest.pipelines,
        by=by,
        at=datetime.now(UTC),
        until=datetime.now(UTC) + 2 * timeout,
    )
    state = place.start(state, started, bundle, wanted)
    try:
        watch(manifest, action != "rollback")
    except BaseException as error:
        why = str(error) or type(error).__name__
        back = _put_back(place, state, started, before, manifest.name, environment, why)
        if not isinstance(error, MlopsError):
            raise
        told = f"{before.version} runs again" if before else "nothing ran before it, and nothing runs now"
        if not back:
            told = "somebody has taken it back since, and that was left as it is; try: airflow-mlops release list"
        elif before:
            try:
                watch(place.bundle(manifest.name, before.digest).manifest, False)
            except MlopsError as other:
                told = f"{before.version} was put back, but Airflow has not loaded it yet ({other.what})"
        where = f"{manifest.name} {manifest.version} in {environment}"
        raise ReleaseFailedError(f"{error}\n{told}", where=where) from error
    ended = started.ended("deployed")
    place.finish(state, manifest.name, ended, wanted)
    return ended


def rollback(
    place: Place, name: str, environment: str, *, by: str, watch: Watch, timeout: timedelta
) -> tuple[Entry | None, str]:
    """Go back to the release before; one that is half-finished is ended, and that is all.

    Returns:
        What runs now, if anything, and what was done in words.

    Raises:
        DeliveryError: when there is nothing to go back to, or it is not there as it was.
    """
    state = place.look(name)
    if half := unfinished(state.entries):
        state = _abandon(place, state, name, environment, half, f"taken back by {by}")
        now = running(state.entries)
        if now:
            watch(place.bundle(name, now.digest).manifest, False)
        return now, f"{half.version}, which {half.by} had begun, was taken back"
    found = history(state.entries)
    if len(found) < 2:
        raise DeliveryError(
            f"{name!r} has no release before {found[-1].version if found else 'the first one'} in {environment}",
            fix="airflow-mlops release list",
        )
    bundle = place.bundle(name, found[-2].digest)
    source = f"release {short(found[-2].digest)}"
    options = {"by": by, "source": source, "watch": watch, "timeout": timeout}
    entry = deploy(place, bundle, environment, action="rollback", **options)  # type: ignore[arg-type]
    return entry, f"back from {found[-1].version} to {entry.version}"


def running_bundle(place: Place, name: str, environment: str) -> Bundle:
    """What an environment runs, to take it on elsewhere: every file held against its digest.

    Raises:
        ReleaseConflictError: when a release goes on there, of which nobody knows yet whether it stays.
        DeliveryError: when nothing runs there, it is not as it was deployed, or the pointer names something else.
    """
    state = place.look(name)
    if half := unfinished(state.entries):
        raise ReleaseConflictError(
            f"{half.by} began to release {name} {half.version} in {environment} at {half.at:%Y-%m-%d %H:%M} UTC, and "
            "it is not finished: it is not known yet what runs there",
            fix=f"wait for it, or airflow-mlops release rollback {environment} to take it back",
        )
    now = running(state.entries)
    if now is None:
        raise DeliveryError(f"no release of {name!r} runs in {environment}", fix="airflow-mlops deploy")
    if f"/{name}/{short(now.digest)}" not in (state.pointer or ""):
        raise DeliveryError(
            f"{place.where}/{pointer_file(name)} does not name {name} {now.version}, which was deployed in "
            f"{environment}: what runs there is not what was tested there",
            fix=f"deploy to {environment} again",
        )
    return place.bundle(name, now.digest)


def _closed(place: Place, name: str, environment: str, by: str) -> State:
    """The state of a name with no release half-finished.

    Raises:
        ReleaseConflictError: when one goes on.
    """
    state = place.look(name)
    half = unfinished(state.entries)
    if half is None:
        return state
    if half.until and datetime.now(UTC) < half.until:
        raise ReleaseConflictError(
            f"{half.by} began to release {name} {half.version} in {environment} at {half.at:%Y-%m-%d %H:%M} UTC, and "
            f"it is not finished; it counts as lost from {half.until:%H:%M} UTC on",
            fix=f"wait for it, or airflow-mlops release rollback {environment} to take it back",
        )
    return _abandon(place, state, name, environment, half, f"lost: nobody had ended it when {by} came")


def _abandon(place: Place, state: State, name: str, environment: str, half: Entry, why: str) -> State:
    _put_back(place, state, half, running(state.entries), name, environment, why)
    return place.look(name)


def _put_back(
    place: Place, state: State, half: Entry, before: Entry | None, name: str, environment: str, why: str
) -> bool:
    """Let what ran before run again; False where somebody has taken over since, and has seen to it."""
    text = pointer_text(name, before.version, before.digest, environment) if before else None
    try:
        place.finish(state, name, half.ended("failed", why), text)
    except ReleaseConflictError:
        return False
    return True


def _claim(place: Place, manifest: Manifest, environment: str) -> None:
    """See that no release of another name has a pipeline of this one: Airflow ignores one of two equal DAG ids.

    Raises:
        ReleaseConflictError: when one has.
    """
    for name in place.names():
        entries = place.look(name).entries if name != manifest.name else []
        for entry in filter(None, (running(entries), unfinished(entries))):
            if both := sorted({*entry.pipelines} & {*manifest.pipelines}):
                raise ReleaseConflictError(
                    f"{environment} has {both[0]!r} in the release {name} {entry.version}, and would have it twice",
                    fix=f"airflow-mlops build --name {name}, or leave it out of one of the two",
                )
