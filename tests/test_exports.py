"""What ``import fedpa`` offers."""

from __future__ import annotations

import importlib
import os
import pkgutil
from importlib.metadata import entry_points
from typing import Any

import pytest
import typer

import fedpa
from fedpa import cli, methods
from fedpa.methods import find_method, method_names


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


@pytest.mark.parametrize(
    "name", ["fedpa.cli", "fedpa.methods", "fedpa.methods.biases", "fedpa.methods.fedpa", "fedpa.methods.lora"]
)
def test_a_module_has_what_it_names(name: str) -> None:
    module = importlib.import_module(name)
    assert [each for each in module.__all__ if not hasattr(module, each)] == []


def test_every_registered_method_is_exported() -> None:
    found = {find_method(name).__name__ for name in method_names()}
    assert found <= {*methods.__all__}
    assert "biases" in method_names()


def test_the_program_is_the_command_line_with_its_verbs_in_order() -> None:
    (program,) = entry_points(group="console_scripts", name="fedpa")
    assert program.load() is cli.main
    command: Any = typer.main.get_command(cli.app)
    assert list(command.commands) == [
        "data", "prepare", "pretrain", "distill", "adapt", "evaluate", "recommend", "export", "forget",
        "import-reference", "methods", "rollback", "tune", "compare", "reproduce", "demo", "flower",
    ]  # fmt: skip
    assert list(command.commands["data"].commands) == ["synth", "download", "describe", "check", "shard"]
