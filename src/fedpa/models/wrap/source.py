"""A foundation by its name: a folder, or a function of one's own that wraps a module."""

from __future__ import annotations

from pathlib import Path

from fedpa.errors import ConfigError
from fedpa.models.foundation import Foundation, load_foundation
from fedpa.models.wrap.wrapped import Wrapped
from fedpa.own_code import attribute_of, is_own_code

__all__ = ["open_foundation"]


def open_foundation(name: Path | str) -> Foundation:
    """Load a foundation folder, or call ``build`` of ``my_file.py:build``, which returns what `fedpa.wrap` does.

    Raises
    ------
    ConfigError
        If the file or the function is missing or fails, or returns something else.
    ArtifactError
        If the folder is missing, damaged or from another version.
    """
    if not is_own_code(str(name)):
        return load_foundation(name)
    build = attribute_of(str(name), "function")
    file, _, attribute = str(name).rpartition(":")
    if not callable(build):
        raise ConfigError(f"{file}: has no function {attribute}", f"write def {attribute}(): return fedpa.wrap(...)")
    try:
        found = build()
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{file}: {attribute}() failed ({type(error).__name__}: {error})") from error
    if not isinstance(found, Wrapped):
        raise ConfigError(
            f"{file}: {attribute}() returned {type(found).__name__}, expected what fedpa.wrap returns",
            "return fedpa.wrap(module, targets=[...])",
        )
    return found
