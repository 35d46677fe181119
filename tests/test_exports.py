"""What ``import fedpa`` offers."""

from __future__ import annotations

import importlib
import os
import pkgutil

import pytest

import fedpa


@pytest.mark.parametrize("name", fedpa.__all__)
def test_a_name_is_what_it_says_whatever_was_imported_before(name: str) -> None:
    """A module of the same name would take its place as soon as anything imports it."""
    assert callable(getattr(fedpa, name))
    assert name not in {module.name for module in pkgutil.iter_modules(fedpa.__path__)}
    assert getattr(importlib.import_module(fedpa._HOMES[name]), name) is getattr(fedpa, name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'adapted'"):
        _ = fedpa.adapted


def test_products_are_reproducible() -> None:
    assert os.environ["MKL_CBWR"]
