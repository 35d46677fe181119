"""Which layers get adapters: names and patterns, as in PEFT's ``target_modules``."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Sequence

from torch import nn

from fedpa.errors import ConfigError

__all__ = ["find_layers", "is_adaptable", "layer_name", "linear_of"]


def linear_of(layer: nn.Module) -> nn.Linear:
    """The linear layer itself, of a layer with or without its activation."""
    first = layer[0] if isinstance(layer, nn.Sequential) else layer
    if not isinstance(first, nn.Linear):
        raise ConfigError(f"{type(layer).__name__} is no linear layer")
    return first


def is_adaptable(layer: nn.Module) -> bool:
    """Whether it is an ``nn.Linear``, or an ``nn.Sequential`` of one and an activation without weights."""
    if isinstance(layer, nn.Sequential):
        return (
            len(layer) == 2
            and isinstance(layer[0], nn.Linear)
            and not any(True for _ in layer[1].parameters())
            and not any(True for _ in layer[1].children())
        )
    return isinstance(layer, nn.Linear)


def layer_name(target: str) -> str:
    """The prefix of a target's parameters; without its dots, so that no part of it can be taken for a scope."""
    return f"layers.{target.replace('.', '/')}"


def find_layers(module: nn.Module, wanted: str | Sequence[str], what: str) -> list[str]:
    """Names of a module's linear layers that match, in the module's order.

    Parameters
    ----------
    module : Module
    wanted : str or sequence of str
        One string is a regular expression over whole names, or ``"all-linear"``. In a sequence each is a whole name or
        the end of one from a dot on, in which ``*`` and ``?`` stand for anything. A linear layer inside a matched
        ``Sequential`` of a linear layer and its activation belongs to that.
    what : str
        The argument's name, for errors.

    Raises
    ------
    ConfigError
        If something matches no linear layer; names near misses, or what was matched instead.
    """
    names = {name: layer for name, layer in module.named_modules() if name}
    found: set[str] = set()
    for one in [wanted] if isinstance(wanted, str) else wanted:
        matched = [name for name in names if _matches(name, one, regular=isinstance(wanted, str))]
        layers = [name for name in matched if is_adaptable(names[name])]
        if not layers:
            raise ConfigError(*_explain(module, names, one, matched, what))
        found.update(layers)
    outermost = found - {name for name in found if name.rpartition(".")[0] in found}
    return [name for name in names if name in outermost]


def _matches(name: str, wanted: str, *, regular: bool) -> bool:
    if regular and wanted == "all-linear":
        return True
    if regular:
        try:
            return re.fullmatch(wanted, name) is not None
        except re.error as error:
            raise ConfigError(f"{wanted!r} is not a regular expression ({error})", "or give a list of names") from None
    return fnmatch.fnmatchcase(f".{name}", f"*.{wanted}")


def _explain(
    module: nn.Module, names: dict[str, nn.Module], wanted: str, matched: list[str], what: str
) -> tuple[str, str]:
    """Message and remedy for what matches no linear layer."""
    where = f"{what} {wanted!r} of {type(module).__name__}"
    if matched:
        kind = type(names[matched[0]]).__name__
        return (
            f"{where}: matches {matched[0]!r}, which is {kind}; expected nn.Linear, or nn.Sequential of nn.Linear and "
            "an activation",
            "name the linear layers inside it",
        )
    linear = [name for name, layer in names.items() if is_adaptable(layer)]
    ends = {name.rpartition(".")[2] for name in linear if not name.rpartition(".")[2].isdigit()}
    near = difflib.get_close_matches(wanted, [*linear, *sorted(ends)], 3)
    shown = near or linear[:8]
    if not shown:
        return f"{where}: matches nothing, and there is no linear layer", "give a module with linear layers"
    return (
        f"{where}: matches nothing; {'near' if near else 'its linear layers'}: {', '.join(shown)}",
        "name one of these",
    )
