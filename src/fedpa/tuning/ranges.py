"""What may be chosen for every setting of a method, read from a file that is fixed before tuning."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Self

import pydantic
import yaml
from pydantic import Field

from fedpa.errors import ConfigError
from fedpa.methods import Baseline, Method, find_method, method_names, parse_spec
from fedpa.settings import StrictSettings

__all__ = ["Range", "Ranges", "load_ranges"]

_KEYS = ("tried", "common", "methods")
_ON_THE_SERVER = (
    "weighting",
    "server_optimizer",
    "server_lr",
    "server_momentum",
    "proximal",
    "table_mean",
    "item_counts",
    "table_prior",
)

Number = Annotated[int | float, Field(allow_inf_nan=False)]


class Range(StrictSettings):
    """What a setting may be.

    Attributes
    ----------
    choices : sequence, optional
        The values themselves.
    low, high : int or float, optional
        Both included; both whole gives whole numbers.
    log : bool
        Whether the logarithm is what is drawn.
    when : mapping of str to sequence, optional
        Other settings and their values beside which this one is offered.
    """

    choices: Annotated[tuple[bool | int | float | str, ...], Field(min_length=1)] | None = None
    low: Number | None = None
    high: Number | None = None
    log: bool = False
    when: dict[str, tuple[bool | int | float | str, ...]] = Field({})

    @pydantic.model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.log:
                raise ValueError("expected choices, or low and high")
        elif self.low is None or self.high is None:
            raise ValueError("expected choices, or low and high")
        elif not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError("expected low below high, and above 0 on a logarithmic scale")
        return self

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values that must be valid for all of the range to be."""
        return (self.low, self.high) if self.choices is None else self.choices

    def contains(self, value: object) -> bool:
        """Whether a value may be drawn."""
        if self.choices is not None:
            return any(value == choice and type(value) is type(choice) for choice in self.choices)
        if isinstance(value, bool) or not isinstance(value, int | float) or self.low is None or self.high is None:
            return False
        return self.low <= value <= self.high


def _accepts(method: type[Method], key: str, value: Any) -> bool:
    try:
        method.settings_type.checked({key: value}, method.name)
    except ConfigError:
        return False
    return True


class Ranges:
    """The ranges of all methods.

    Parameters
    ----------
    content : mapping
        ``common`` and ``methods``, as in the file.
    where : str
        What errors call it.

    Raises
    ------
    ConfigError
        If a method is unknown, or a range is not one or allows what the setting does not.
    """

    def __init__(self, content: object, where: str) -> None:
        if not isinstance(content, Mapping) or not {"common", "methods"} <= set(content) <= {*_KEYS}:
            raise ConfigError(f"{where}: expected the keys common and methods, and perhaps tried")
        self._where = where
        self._tried = dict(content.get("tried") or {})
        self._common = self._section("common", content["common"])
        self._methods = {
            str(name): self._section(str(name), found) for name, found in (content["methods"] or {}).items()
        }
        for name in self._methods:
            if name not in method_names():
                raise ConfigError(f"{where}: unknown method {name!r}, known: {', '.join(method_names())}")
        # Whatever the method: a name that nobody has is a slip, and so is a value that its setting refuses.
        for name in method_names():
            self._check(name)
        known = {field for name in method_names() for field in find_method(name).settings_type.model_fields}
        for setting in self._common:
            if setting not in known:
                raise ConfigError(f"{where}: common: no method has a setting {setting!r}")

    def of(self, spec: str) -> dict[str, Range]:
        """What is offered to a method, in the order of drawing.

        Raises
        ------
        ConfigError
            If the method or its preset is unknown.
        """
        name, preset = parse_spec(spec)
        if preset in find_method(name).follows:
            return {}
        held = find_method(name).held.get(preset, ())
        return {key: found for key, found in self._offered(name).items() if "*" not in held and key not in held}

    def tried(self, spec: str) -> dict[str, Any]:
        """What is tried after the preset: settings that the method has and its preset does not hold."""
        name, preset = parse_spec(spec)
        method = find_method(name)
        held = method.held.get(preset, ())
        if issubclass(method, Baseline) or "*" in held or preset in method.follows:
            return {}
        full = method.configured(preset, {}).settings.model_dump()
        fields = method.settings_type.model_fields
        narrowed = self._methods.get(name, {})
        if method.family == "device":  # nothing is uploaded
            held = (*held, *_ON_THE_SERVER)
        wanted = {
            key: value
            for key, value in self._tried.items()
            if key in fields and key not in held and (key not in narrowed or narrowed[key].contains(value))
        }
        return {key: value for key, value in wanted.items() if value != full[key] and _accepts(method, key, value)}

    def _offered(self, name: str) -> dict[str, Range]:
        method = find_method(name)
        # What needs no federation reads none of the common settings, though its settings have them.
        common = {} if issubclass(method, Baseline) else self._common
        if method.family == "device":  # nothing is uploaded
            common = {key: found for key, found in common.items() if key not in _ON_THE_SERVER}
        both = {**common, **self._methods.get(name, {})}
        return {key: found for key, found in both.items() if key in method.settings_type.model_fields}

    def _check(self, name: str) -> None:
        settings_type = find_method(name).settings_type
        for setting in self._methods.get(name, {}):
            if setting not in settings_type.model_fields:
                known = ", ".join(sorted(settings_type.model_fields))
                raise ConfigError(f"{self._where}: {name}: has no setting {setting!r}, known: {known}")
        offered = self._offered(name)
        drawn: set[str] = set()
        for setting, found in offered.items():
            if not set(found.when) <= drawn:
                raise ConfigError(
                    f"{self._where}: {name}: {setting}: `when` names {', '.join(sorted(set(found.when) - drawn))}, "
                    "expected settings above it"
                )
            for value in found.ends:
                settings_type.checked({setting: value}, f"{self._where}: {name}")
            drawn.add(setting)

    def _section(self, name: str, content: object) -> dict[str, Range]:
        if not isinstance(content, Mapping):
            raise ConfigError(f"{self._where}: {name}: expected settings and their ranges, found {content!r}")
        found = {}
        for setting, values in content.items():
            where = f"{self._where}: {name}: {setting}"
            if not isinstance(values, Mapping):
                raise ConfigError(f"{where}: expected choices, or low and high, found {values!r}")
            found[str(setting)] = Range.checked(values, where)
        return found


def load_ranges(path: Path | None = None) -> Ranges:
    """The ranges of a file, by default of the one that comes with the package.

    Raises
    ------
    ConfigError
        If it cannot be read or names what does not exist.
    """
    file = files("fedpa.tuning") / "ranges.yaml" if path is None else path
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: cannot be read ({error})", "give a YAML file of ranges, or none") from None
    return Ranges(content, str(file))
