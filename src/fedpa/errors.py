"""Errors that a user can act on: what was wrong, where, what was expected, what to do."""

from __future__ import annotations

__all__ = ["ArtifactError", "ConfigError", "DataError", "FedpaError"]


class FedpaError(Exception):
    """A mistake that the user can mend. The command line prints it and exits with code 2.

    Parameters
    ----------
    message : str
        Names the file, row or key, what was found and what was expected.
    fix : str, optional
        What to do about it, as one sentence in the imperative.
    """

    def __init__(self, message: str, fix: str | None = None) -> None:
        self.message = message
        self.fix = fix
        super().__init__(message if fix is None else f"{message}\n  To fix it: {fix}")


class DataError(FedpaError):
    """A raw table, a data set folder or a row of one is not what it must be."""


class ConfigError(FedpaError):
    """A setting, preset, method or option is unknown or out of range."""


class ArtifactError(FedpaError):
    """A foundation, run or checkpoint is missing, damaged, from another version or does not fit."""
