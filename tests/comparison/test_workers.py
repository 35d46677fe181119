"""Workers run calls side by side, and outlive those that fail."""

from __future__ import annotations

import operator
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil  # type: ignore[import-untyped]
import pytest

from fedpa.artifacts import read_manifest
from fedpa.comparison.workers import Outcome, Workers
from processes import still_running


@pytest.fixture
def workers() -> Iterator[Workers]:
    with Workers(1) as made:
        yield made


def only(workers: Workers) -> Outcome:
    (outcome,) = workers.wait(300)
    return outcome


def test_a_worker_is_used_again_on_one_thread(workers: Workers) -> None:
    before = dict(os.environ)
    workers.submit("first", os.getpid)
    first = only(workers)
    workers.submit("second", os.getpid)
    assert (first.key, first.error) == ("first", None)
    assert only(workers).value == first.value != os.getpid()
    workers.submit("threads", os.getenv, "OMP_NUM_THREADS")
    assert only(workers).value == "1"
    # Ctrl-C reaches every process of the terminal; a run that it cut short must not pass for a whole one.
    workers.submit("interrupts", signal.getsignal, signal.SIGINT)
    assert only(workers).value == signal.SIG_IGN
    assert dict(os.environ) == before


def test_a_failure_is_an_outcome(workers: Workers, tmp_path: object) -> None:
    workers.submit("bug", operator.truediv, 1, 0)
    bug = only(workers)
    assert bug.error == "ZeroDivisionError: division by zero"
    assert bug.details is not None
    assert "Traceback" in bug.details
    workers.submit("mistake", read_manifest, tmp_path, "dataset")
    mistake = only(workers)
    assert mistake.error is not None
    assert "expected a dataset folder" in mistake.error
    assert mistake.details is None
    workers.submit("fine", operator.truediv, 1, 2)
    assert only(workers).value == 0.5


def test_a_process_that_dies_fails_its_call_and_is_replaced(workers: Workers) -> None:
    workers.submit("death", os._exit, 7)
    assert only(workers).error == "its process ended with exit code 7"
    workers.submit("life", operator.add, 1, 2)
    assert only(workers).value == 3


def test_a_process_killed_for_memory_says_so(workers: Workers) -> None:
    workers.submit("killed", signal.raise_signal, signal.SIGKILL)
    assert only(workers).error == "its process ended with exit code -9, perhaps for lack of memory"


def test_a_full_house_takes_nothing(workers: Workers) -> None:
    workers.submit("sleep", time.sleep, 60)
    assert workers.free == 0
    assert list(workers.running) == ["sleep"]
    assert workers.wait(0.01) == []
    with pytest.raises(RuntimeError, match="busy"):
        workers.submit("more", time.sleep, 0)


def test_workers_end_with_whoever_started_them() -> None:
    code = """if __name__ == "__main__":
    import time
    from fedpa.comparison.workers import Workers
    with Workers(1) as workers:
        workers.submit("sleep", time.sleep, 60)
        print("ready", flush=True)
        time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        children = psutil.Process(parent.pid).children()
        assert children
        time.sleep(3)  # By then the worker watches its parent.
        parent.kill()
        assert still_running(children, within=10) == []
