"""How much memory a benchmark has used."""

from __future__ import annotations

from pathlib import Path


def peak_memory() -> int:
    """Peak resident memory of this process alone, in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
