"""A stage in a process of its own: what it says and costs is seen, and it never outlives who asked for it."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from airflow_mlops.backends import Handle, backend_of
from airflow_mlops.backends.subprocess import SubprocessBackend
from airflow_mlops.call import Call, Store
from airflow_mlops.call.code import snapshot
from airflow_mlops.call.store import cache_folder
from airflow_mlops.errors import CodeError, JobCancelledError, JobFailedError, JobLostError, MemoryLimitError
from tests import toy

SECRET = {"TOY_SECRET": "hunter2-hunter2"}


@pytest.fixture
def backend() -> Iterator[SubprocessBackend]:
    made = SubprocessBackend()
    yield made
    made.close()


Asking = Callable[..., Call]


@pytest.fixture
def asking(tmp_path: Path) -> Asking:
    """Makes Calls of a stage that runs these lines in a feature function."""
    store = Store(str(tmp_path / "store"))
    table = toy.write(toy.rows("2024-01", 50), tmp_path / "rows.parquet")

    def ask(*lines: str, run: str = "r") -> Call:
        data = store.put_file(toy.write(toy.rows("2024-01", 50), table), "dataset")
        body = "\n    ".join([*lines, "return frame"])
        toy.package(tmp_path, "user", f"import logging, os, sys, time\n\ndef build(frame):\n    {body}\n")
        params = {"target": "y", "features": "user.features:build", "split": {"by": "random", "test": 0.5}}
        code = snapshot(["user.features:build"], str(tmp_path), store)
        return Call(
            pipeline="toy", stage="prepare", run=run, inputs={"data": data}, params=params, code=code, store=store.root
        )

    return ask


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to it"
        time.sleep(0.02)


def started(file: Path) -> int:
    """The process id that user code has written into a file."""
    until(lambda: file.exists() and file.read_text().endswith("\n"))
    return int(file.read_text())


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_log_lines_come_while_the_stage_runs(backend: SubprocessBackend, asking: Asking, tmp_path: Path) -> None:
    go = tmp_path / "go"
    waiting = f"while not os.path.exists({str(go)!r}): time.sleep(0.01)"
    handle = backend.submit(asking("print('a word')", "logging.getLogger('mine').warning('careful')", waiting), {})
    lines = (line for line in backend.logs(handle) if "cache" not in line)
    seen = [next(lines), next(lines)]
    assert seen == ["a word", "WARNING mine: careful"]
    assert backend.status(handle) == "running"
    go.touch()
    rest = list(lines)
    assert rest[-1].endswith("has ended with exit code 0")
    assert backend.collect(handle).metrics["train_rows"] > 0


def test_secrets_are_in_its_environment_only(
    backend: SubprocessBackend, asking: Asking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", "postgresql://somebody:hunter3@host/db")
    pid = tmp_path / "pid"
    waiting = f"assert os.environ['TOY_SECRET']; print(os.getpid(), file=open({str(pid)!r}, 'w')); time.sleep(60)"
    handle = backend.submit(asking(waiting), SECRET)
    process = psutil.Process(started(pid))
    assert "hunter2" not in " ".join(process.cmdline())
    assert process.environ()["TOY_SECRET"] == SECRET["TOY_SECRET"]
    assert not [name for name, value in process.environ().items() if "hunter3" in value]
    kept = [
        file.read_bytes() for root in (cache_folder("jobs"), tmp_path) for file in root.rglob("*") if file.is_file()
    ]
    assert kept and not any(b"hunter2" in content for content in kept)
    backend.cancel(handle)


def test_cancelling_ends_the_whole_group(backend: SubprocessBackend, asking: Asking, tmp_path: Path) -> None:
    own, child = tmp_path / "own", tmp_path / "child"
    stubborn = (
        "import signal, subprocess",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        "child = subprocess.Popen(['sleep', '300'])",
        f"print(child.pid, file=open({str(child)!r}, 'w'))",
        f"print(os.getpid(), file=open({str(own)!r}, 'w'))",
        "time.sleep(300)",
    )
    handle = backend.submit(asking(*stubborn), {})
    pids = [started(child), started(own)]
    SubprocessBackend().cancel(handle)
    until(lambda: all(gone(pid) for pid in pids))
    assert backend.status(handle) == "cancelled"
    with pytest.raises(JobCancelledError):
        backend.collect(handle)


WORKER = """
import sys, time
from airflow_mlops.backends.subprocess import SubprocessBackend
from airflow_mlops.call import Call
from pathlib import Path
backend = SubprocessBackend()
handle = backend.submit(Call.model_validate_json(Path(sys.argv[1]).read_text()), {})
time.sleep(300)
"""


def test_a_killed_worker_leaves_nothing_running_and_the_next_try_starts_anew(
    backend: SubprocessBackend, asking: Asking, tmp_path: Path
) -> None:
    pid, call_file = tmp_path / "pid", tmp_path / "call.json"
    go = tmp_path / "go"
    wait = f"while not os.path.exists({str(go)!r}): time.sleep(0.01)"
    call = asking(f"print(os.getpid(), file=open({str(pid)!r}, 'w'))", wait)
    call_file.write_text(call.model_dump_json())
    worker = toy.start(WORKER, str(call_file))
    running = started(pid)
    found = backend.find(call)
    assert found is not None and backend.status(found) == "running"
    worker.send_signal(signal.SIGKILL)
    worker.communicate()
    until(lambda: gone(running))
    assert backend.find(call) is None
    with pytest.raises(JobLostError):
        backend.collect(found)
    go.touch()
    handle = backend.submit(call, {})
    list(backend.logs(handle))
    assert backend.collect(handle).stage == "prepare"


def test_a_job_that_was_done_when_its_worker_died_is_found_once(asking: Asking, backend: SubprocessBackend) -> None:
    call = asking("pass")
    handle = backend.submit(call, {})
    list(backend.logs(handle))
    again = SubprocessBackend()
    assert again.find(call) == handle
    assert again.collect(handle).identity == call.identity
    assert again.find(call) is None, "what was collected is not done a second time by finding it"


def test_more_memory_than_declared_ends_it_and_is_not_tried_again(asking: Asking) -> None:
    backend = SubprocessBackend(memory="400MiB")
    handle = backend.submit(asking("hog = bytearray(500 << 20); time.sleep(60)"), {})
    assert any("signal 9 (SIGKILL)" in line for line in backend.logs(handle))
    with pytest.raises(MemoryLimitError, match="used more than the 400MiB of memory that are declared") as caught:
        backend.collect(handle)
    assert not caught.value.retryable and caught.value.fix is not None and "runtime.memory" in caught.value.fix
    assert "stage 'prepare'" in str(caught.value)


def test_memory_of_children_counts(asking: Asking) -> None:
    backend = SubprocessBackend(memory="500MiB")
    child = [sys.executable, "-c", "hog = bytearray(600 << 20); import time; time.sleep(60)"]
    handle = backend.submit(asking(f"import subprocess; subprocess.run({child!r})"), {})
    list(backend.logs(handle))
    with pytest.raises(MemoryLimitError):
        backend.collect(handle)


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        ("return 3", CodeError, r"user.features:build"),
        ("raise KeyError('gone')", CodeError, r"KeyError: 'gone'"),
        ("os._exit(7)", JobFailedError, "ended with exit code 7 and left no outcome"),
        ("os.kill(os.getpid(), 11)", JobFailedError, r"ended with signal 11 \(SIGSEGV\)"),
    ],
)
def test_how_it_fails_is_told(
    backend: SubprocessBackend, asking: Asking, body: str, kind: type[Exception], said: str
) -> None:
    handle = backend.submit(asking(body), {})
    list(backend.logs(handle))
    assert backend.status(handle) == "failed"
    with pytest.raises(kind, match=said):
        backend.collect(handle)


def test_there_is_no_input_and_what_is_printed_without_end_and_from_c_is_log(
    backend: SubprocessBackend, asking: Asking
) -> None:
    reads = "assert sys.stdin.read() == '' and os.read(0, 9) == b''"
    prints = "os.write(1, b'from below\\n'); print('x' * 200_000); os.write(2, b'no end')"
    handle = backend.submit(asking(reads, prints), {})
    lines = list(backend.logs(handle))
    assert "from below" in lines and "x" * 200_000 in lines
    assert backend.collect(handle).stage == "prepare"


def test_a_warm_process_serves_one_call_after_another(asking: Asking, tmp_path: Path) -> None:
    backend = SubprocessBackend(warm=True)
    pids = []
    for run in ("a", "b"):
        handle = backend.submit(asking(f"open({str(tmp_path / run)!r}, 'w').write(str(os.getpid()))", run=run), {})
        list(backend.logs(handle))
        assert backend.collect(handle).identity == handle.call.identity
        pids.append(int((tmp_path / run).read_text()))
    assert pids[0] == pids[1]
    handle = backend.submit(asking(f"open({str(tmp_path / 'c')!r}, 'w').write(str(os.getpid()))", run="c"), SECRET)
    list(backend.logs(handle))
    backend.collect(handle)
    assert int((tmp_path / "c").read_text()) != pids[0], "other secrets, another process"
    backend.close()
    assert gone(int((tmp_path / "c").read_text()))


def test_a_handle_of_another_machine_is_lost(asking: Asking) -> None:
    call = asking("pass")
    assert backend_of("subprocess").status(Handle(backend="subprocess", job=call.identity, call=call)) == "lost"
