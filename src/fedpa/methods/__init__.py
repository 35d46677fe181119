"""Methods: each a model and a scope for every parameter, or a baseline that only scores."""

from fedpa.methods.baselines import FrozenFoundation, TwoCounters
from fedpa.methods.fedpa import FedPA
from fedpa.methods.method import (
    Baseline,
    FederatedMethod,
    Method,
    compared_specs,
    find_method,
    method_names,
    parse_spec,
    register,
    title_of,
)

__all__ = [
    "Baseline",
    "FedPA",
    "FederatedMethod",
    "FrozenFoundation",
    "Method",
    "TwoCounters",
    "compared_specs",
    "find_method",
    "method_names",
    "parse_spec",
    "register",
    "title_of",
]
