"""Code of one's own, given as ``my_file.py:name``."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from fedpa.errors import ConfigError

__all__ = ["absolute", "attribute_of", "is_own_code"]


def is_own_code(text: str) -> bool:
    """Whether it reads ``path/to/file.py:name``."""
    file, colon, _ = text.rpartition(":")
    return bool(colon) and file.endswith(".py")


def absolute(text: str) -> str:
    """The same from wherever it is read."""
    file, _, name = text.rpartition(":")
    return f"{Path(file).resolve()}:{name}"


def attribute_of(text: str, what: str) -> Any:
    """Import the file and return what it has under the name, or None.

    Parameters
    ----------
    text : str
        ``path/to/file.py:name``.
    what : str
        What the name should be, for the error.

    Raises
    ------
    ConfigError
        If there is no such file, or importing it fails.
    """
    file, _, name = text.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"{path}: no such file, expected a Python file with {what} {name}")
    module_name = f"fedpa_own_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path}: cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"{path}: importing it failed ({type(error).__name__}: {error})") from error
    return getattr(module, name, None)
