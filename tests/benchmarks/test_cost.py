"""The benchmarks count what they say they count."""

from __future__ import annotations

import os
import subprocess
import sys

from benchmarks.cost import descendants_cpu, python

SECONDS = 0.3
BURN = f"import time\nwhile time.process_time() < {SECONDS}: pass"
GRANDCHILD = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BURN!r}], check=True)"
# The burning child has ended and was waited for; its parent goes on.
LINGER = GRANDCHILD + "\nprint('done', flush=True)\nsys.stdin.read()"


def test_the_cost_of_a_command_has_its_children_in_it() -> None:
    cost, _ = python("-c", GRANDCHILD, environment=os.environ)
    assert cost.cpu >= SECONDS - 0.02
    assert cost.rss > 1 << 20


def test_descendants_that_have_ended_are_counted() -> None:
    before = descendants_cpu(os.getpid())
    process = subprocess.Popen([sys.executable, "-c", LINGER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        running = descendants_cpu(os.getpid()) - before
    ended = descendants_cpu(os.getpid()) - before
    # The kernel counts in ticks of a hundredth.
    assert running >= SECONDS - 0.02
    assert ended >= running - 0.02
