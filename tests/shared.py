"""Where the reference rounds and the real data are, for tests that need them."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def need(path: str) -> Path:
    """A path below the shared folder, or a skip that says what is missing."""
    found = SHARED / path
    if not found.exists():
        pytest.skip(f"needs {path} in the folder `shared` beside the repository")
    return found
