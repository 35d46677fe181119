"""What a method is, and the register of methods."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy.typing as npt
import torch

from fedpa.data.dataset import Dataset, Part
from fedpa.errors import ConfigError
from fedpa.federation.parameters import Layout, Scope
from fedpa.federation.rows import ShardRows
from fedpa.federation.rule import AdaptedModel, LocalRule
from fedpa.federation.server import Server
from fedpa.federation.tally import Tally
from fedpa.models.bias import WithPersonalBias
from fedpa.models.foundation import Foundation
from fedpa.models.wrap.wrapped import Wrapped
from fedpa.own_code import attribute_of, is_own_code
from fedpa.settings import Settings

__all__ = [
    "Baseline",
    "Family",
    "FederatedMethod",
    "Method",
    "compared_specs",
    "find_method",
    "method_names",
    "parse_spec",
    "register",
    "title_of",
]

Family = Literal["baseline", "device", "ceiling", "federated", "adapter"]
_FAMILIES: tuple[Family, ...] = ("baseline", "device", "ceiling", "federated", "adapter")


class Method(ABC):
    """Anything that gives a click probability to every row of every private user.

    Attributes
    ----------
    name : str
        As on the command line.
    settings_type : type
        Its settings; a subclass of `Settings`.
    presets : mapping
        Named settings; ``default`` must be among them.
    needs_foundation : bool
        Whether it reads a foundation.
    family : {"baseline", "device", "ceiling", "federated", "adapter"}
        Where it stands in a table: without federation, on the device alone, with everybody's rows in one place, a
        federated recommender or an adapter around the foundation.
    compared : mapping
        Presets that a comparison runs, each with the title of its row.
    held : mapping
        By preset the settings that make it what it is, so that no tuning may choose them; ``"*"`` holds all.
    follows : mapping
        By preset the preset whose chosen settings it takes but for those that it holds: an ablation, not tuned itself.
    seeds_matter : bool
        Whether another seed, and with it another foundation, may give other scores.
    """

    name: ClassVar[str]
    family: ClassVar[Family] = "adapter"
    compared: ClassVar[Mapping[str, str]] = {}
    held: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    follows: ClassVar[Mapping[str, str]] = {}
    settings_type: ClassVar[type[Settings]] = Settings
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"default": {}}
    needs_foundation: ClassVar[bool] = True
    seeds_matter: ClassVar[bool] = True

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @property
    def reads_foundation(self) -> bool:
        """Whether the method with these settings needs a foundation."""
        return self.needs_foundation

    def needed(self, foundation: Foundation | None) -> Foundation:
        """The foundation with the backbone that `fedpa.pretrain` makes, or an error that it is missing or another."""
        if isinstance(foundation, Wrapped):
            raise self._backbone_only()
        if foundation is None:
            raise ConfigError(
                f"method {self.name}: needs a foundation", "pretrain one or load one with load_foundation"
            )
        return foundation

    def _backbone_only(self) -> ConfigError:
        return ConfigError(
            f"method {self.name}: takes the backbone of `fedpa pretrain` apart and cannot adapt a wrapped module",
            "use fedpa, local-only, fedit, ffa-lora, fedsa-lora, personal-lora, head-only, user-bias or biases",
        )

    def tally(self, dataset: Dataset, rows: ShardRows) -> Tally | None:
        """What the devices of a shard count before the first round, if anything; shards' counts add up."""
        if not self.settings.item_counts:
            return None
        own = rows.items.cpu().numpy(), rows.time, rows.labels.cpu().numpy(), rows.part == Part.TRAIN
        return Tally.of(dataset, self.settings.item_counts, *own)

    def rows(self, foundation: Foundation | None, dataset: Dataset, rows: ShardRows, tally: Tally | None) -> ShardRows:
        """Rows as the method reads them: the user's past up to the cut or up to each row, and everybody's counts."""
        if self.settings.history == "online":
            rows = rows.online(dataset)
        return rows if tally is None else rows.counted(dataset, tally)

    @property
    def inputs(self) -> str:
        """What the method may read of a row, for the row's line in a table."""
        return "features, counters"

    @classmethod
    def configured(cls, preset: str, values: Mapping[str, Any], foundation: Foundation | None = None) -> Method:
        """The method with a preset's settings, changed by what a wrapped module brings and then by `values`.

        Raises
        ------
        ConfigError
            If the preset or a setting is unknown or invalid.
        """
        if preset not in cls.presets:
            near = difflib.get_close_matches(preset, cls.presets, 1)
            raise ConfigError(
                f"method {cls.name}: unknown preset {preset!r}, known: {', '.join(sorted(cls.presets))}",
                f"write {near[0]}" if near else "name one of these, or leave it out",
            )
        brought = foundation.settings_for(cls.settings_type) if isinstance(foundation, Wrapped) else {}
        merged = {**cls.presets[preset], **brought, **values}
        return cls(cls.settings_type.checked(merged, f"method {cls.name}"))


class FederatedMethod(LocalRule, Method):
    """A method whose users train. It is a model, and a scope for each of the model's parameters.

    What else a method may change is a hook: the local step (`LocalRule`: `phases`, `loss`, `local_loss`, `lr_scale`),
    what happens before scoring (`before_scoring`), and the aggregation and the downlink (`server`).
    """

    def rows(self, foundation: Foundation | None, dataset: Dataset, rows: ShardRows, tally: Tally | None) -> ShardRows:
        """The same, with what the foundation's reader says of every row."""
        rows = super().rows(foundation, dataset, rows, tally)
        if isinstance(foundation, Wrapped):
            return foundation.rows(dataset, rows)
        return rows if foundation is None else foundation.inputs.shard_rows(dataset, rows)

    @abstractmethod
    def scope(self, name: str) -> Scope:
        """The scope of a parameter: who trains it and what the server does with it."""

    @abstractmethod
    def build(self, foundation: Foundation | None, dataset: Dataset, seed: int, device: torch.device) -> AdaptedModel:
        """The foundation with this method's parameters around it."""

    def build_wrapped(self, wrapped: Wrapped, dataset: Dataset, seed: int, device: torch.device) -> AdaptedModel:
        """The same around a module of one's own; a method whose parameters are not adapters refuses it."""
        raise self._backbone_only()

    def model(self, foundation: Foundation | None, dataset: Dataset, seed: int, device: torch.device) -> AdaptedModel:
        """What `build` gives, with the personal bias if the settings ask for one."""
        if isinstance(foundation, Wrapped) and self.reads_foundation:
            built = self.build_wrapped(foundation, dataset, seed, device)
        else:
            built = self.build(foundation, dataset, seed, device)
        if self.settings.visible == "rows":
            built.layout = built.layout.with_rows_seen()
        if not self.settings.personal_bias:
            return built
        return WithPersonalBias(built, max(1, len(foundation.labels)) if isinstance(foundation, Wrapped) else 1)

    def server(self, layout: Layout) -> Server:
        """The server; a method with an aggregation or a downlink of its own returns one that has it."""
        return Server(layout, self.settings.torch_dtype, self.settings)


class Baseline(Method):
    """A method without federation: it scores rows, after training in one place if it trains at all."""

    def fit(self, foundation: Foundation | None, dataset: Dataset, rows: ShardRows, *, seed: int, folder: Path) -> None:
        """Train and leave in the run's folder what `open` reads; by default there is nothing to train.

        Of `rows`, the private users', those of part ``train`` may be learnt from and those of part ``val`` may decide
        when to stop.
        """

    def open(self, folder: Path) -> None:
        """Load what `fit` left in the run's folder, before the first call of `scores`."""

    @abstractmethod
    def scores(self, foundation: Foundation | None, dataset: Dataset, rows: ShardRows) -> npt.NDArray[Any]:
        """Click probabilities of the given rows [rows].

        Whatever is true of one row stands in `rows`, whose rows need not be the data set's; of the data set only what
        is known of users and items is read.
        """


_METHODS: dict[str, type[Method]] = {}


def register(method: type[Method]) -> type[Method]:
    """Class decorator: make a method known by its name."""
    _METHODS[method.name] = method
    return method


def method_names() -> list[str]:
    """Names of all registered methods, sorted."""
    return sorted(_METHODS)


def parse_spec(spec: str) -> tuple[str, str]:
    """Split ``method+preset`` into both; without a plus the preset is ``default``.

    Raises
    ------
    ConfigError
        If the method or the preset is unknown.
    """
    name, _, preset = spec.partition("+")
    preset = preset or "default"
    find_method(name).configured(preset, {})
    return name, preset


def compared_specs() -> list[str]:
    """Every ``method+preset`` that a comparison of all methods runs, family by family."""
    return [
        name if preset == "default" else f"{name}+{preset}"
        for family in _FAMILIES
        for name, method in _METHODS.items()
        if method.family == family
        for preset in method.compared
    ]


def title_of(spec: str) -> str:
    """The title of a method's row in a table."""
    name, preset = parse_spec(spec)
    return find_method(name).compared.get(preset, spec)


def find_method(name: str) -> type[Method]:
    """A method by its name, or by ``path/to/file.py:Class`` for a method of one's own.

    Raises
    ------
    ConfigError
        If there is no such method, file or class, or the class is not a method.
    """
    if is_own_code(name):
        return _from_file(name)
    if name not in _METHODS:
        near = difflib.get_close_matches(name, _METHODS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(method_names())}"
        raise ConfigError(f"unknown method {name!r}; {hint}", "a method of your own is given as my_file.py:MyMethod")
    return _METHODS[name]


def _from_file(name: str) -> type[Method]:
    found = attribute_of(name, "class")
    path, _, attribute = name.rpartition(":")
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise ConfigError(f"{path}: has no class {attribute} that derives from fedpa.methods.Method")
    if not hasattr(found, "name"):
        raise ConfigError(f"{path}: class {attribute} has no attribute `name`", f'add name = "{attribute.lower()}"')
    return found
