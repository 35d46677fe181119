"""Methods: each a model and a scope for every parameter, or a baseline that only scores."""

from fedpa.methods.baselines import FrozenFoundation, TwoCounters
from fedpa.methods.fedpa import FedPA
from fedpa.methods.method import Baseline, FederatedMethod, Method, find_method, method_names, register

__all__ = [
    "Baseline",
    "FedPA",
    "FederatedMethod",
    "FrozenFoundation",
    "Method",
    "TwoCounters",
    "find_method",
    "method_names",
    "register",
]
