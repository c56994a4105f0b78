"""The tutorial, run as it stands: its files are written, its commands run in one shell, and they print what it says."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from airflow_mlops.delivery.places import StorePlace
from tests.conftest import free_port
from tests.forked import commands
from tests.loopback.airflow import airflow_of

# All of it is run before the first step is looked at, beside whatever else this machine does.
pytestmark = pytest.mark.timeout(1800)

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial.md"
_BLOCK = re.compile(
    r"(?P<skip><!-- not run -->\n)?^```(?P<kind>\w+)(?: title=(?P<file>\S+))?\n(?P<text>.*?)^```$", re.M | re.S
)
_END = "--- end of command"
AIRFLOWS = {"8080": "staging", "8081": "prod"}
"""The environments, by the ports of their Airflows."""


class Step(NamedTuple):
    """A file to write, or a command and the lines that it must print, in this order; ``...`` stands for anything."""

    command: str
    expected: tuple[str, ...]


def steps() -> Iterator[Step]:
    for block in _BLOCK.finditer(TUTORIAL.read_text()):
        if block["skip"]:
            continue
        if block["file"]:
            yield Step(f"cat > {block['file']} <<'END-OF-FILE'\n{block['text']}END-OF-FILE", ())
        elif block["kind"] == "console":
            for part in re.split(r"^\$ ", block["text"], flags=re.MULTILINE)[1:]:
                command, *expected = part.splitlines()
                yield Step(command, tuple(expected))


def _found(expected: str, lines: list[str]) -> int | None:
    """The position behind the first line that reads like the expected one."""
    pattern = re.compile(r"\s*" + ".*".join(re.escape(part.strip()) for part in expected.split("...")) + r"\s*")
    return next((index + 1 for index, line in enumerate(lines) if pattern.fullmatch(line)), None)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, str]]:
    """The exit code and output of every command, run in one shell in an empty folder."""
    folder = tmp_path_factory.mktemp("tutorial")
    with contextlib.ExitStack() as airflows:
        ports = {"5000": str(free_port())}
        for port, environment in AIRFLOWS.items():
            place = StorePlace(str(folder / environment / "dags"))
            ports[port] = airflows.enter_context(airflow_of(place)).url.rpartition(":")[2]
        return said_in(folder, ports)


def said_in(folder: Path, ports: dict[str, str]) -> list[tuple[int, str]]:
    """Run the commands, with ports that are free in place of those that they name."""
    script = "".join(f"{step.command}\ncode=$?; echo; echo '{_END}' $code\n" for step in steps())
    for port, free in ports.items():
        script = script.replace(port, free)
    (folder / "commands").write_text(script)
    outside = ("MLFLOW_TRACKING_URI", "AIRFLOW_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in outside}
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # consumers that nothing here has work for
    environment["MLFLOW_WORKERS"] = "1"  # for one who asks
    (folder / "bin").mkdir()
    environment["PATH"] = commands(folder / "bin")
    with (folder / "output").open("w+") as output:
        shell = subprocess.Popen(
            ["bash", "commands"],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            shell.wait(timeout=1500)
        finally:
            # The servers that it has started as well.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
    parts = re.split(rf"^{_END} (\d+)\n", (folder / "output").read_text(), flags=re.MULTILINE)
    assert len(parts) // 2 == len(list(steps())), parts[-1]
    return [(int(code), said) for said, code in zip(parts[::2], parts[1::2], strict=False)]


@pytest.mark.parametrize(
    ("index", "step"), [pytest.param(i, step, id=step.command[:50]) for i, step in enumerate(steps())]
)
def test_a_step_does_what_the_tutorial_says(told: list[tuple[int, str]], index: int, step: Step) -> None:
    code, said = told[index]
    assert code == 0, said
    left = said.splitlines()
    for expected in filter(str.strip, step.expected):
        position = _found(expected, left)
        assert position is not None, f"{expected!r} is not in:\n{said}"
        left = left[position:]


def test_the_tutorial_has_its_steps_and_all_of_them_are_run() -> None:
    assert len(list(steps())) > 25
    assert not [block["text"] for block in _BLOCK.finditer(TUTORIAL.read_text()) if block["skip"]]
