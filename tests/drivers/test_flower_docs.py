"""The ten commands of the page on deployment do what it says, as they stand there."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from pathlib import Path

import pytest

from drivers.flower_net import BIN
from fedpa.run import load_run
from processes import free_port

PAGE = Path(__file__).resolve().parents[2] / "docs" / "deployment.md"


def commands() -> list[str]:
    """The first block of the page, a command per entry."""
    block = re.search(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    return block[1].replace("\\\n", " ").strip().split("\n")


def test_there_are_ten_and_each_is_explained() -> None:
    assert len(commands()) == 10
    assert commands()[0] == "pip install 'fedpa[flower]'"
    text = PAGE.read_text(encoding="utf-8")
    assert [int(n) for n in re.findall(r"^(\d+)\. ", text, re.MULTILINE)] == list(range(1, 11))


@pytest.mark.slow
def test_they_end_with_a_run(tmp_path: Path) -> None:
    """But for free ports, a smaller demo, and that the package is there already."""
    lines = commands()[1:]
    lines[0] += " --users 300"
    text = "\n".join(["set -e", *lines])
    port, node = free_port(), free_port()
    text = text.replace("127.0.0.1:8000", f"127.0.0.1:{port}").replace("--port 8000", f"--port {port}")
    text = text.replace("--port 909$n", f"--port $(({node} + $n))")
    text = text.replace("--ca keys/ca.crt", f"--ca keys/ca.crt --superlink 127.0.0.1:{port}")
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    with (tmp_path / "log").open("wb") as log:
        shell = subprocess.Popen(
            ["bash", "-c", f"cd {shlex.quote(str(tmp_path))}\n{text}\nkill $(jobs -p)"],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = shell.wait(timeout=1500)
        finally:
            os.killpg(shell.pid, signal.SIGKILL)
    logs = "\n".join(path.read_text(errors="replace")[-5000:] for path in tmp_path.glob("*log"))
    assert code == 0, logs
    run = load_run(tmp_path / "run")
    assert run.summary["rounds"] == 3, logs
    assert run.summary["answers_lost"] == {}
