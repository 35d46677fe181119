"""Methods: each a model and a scope for every parameter, or a baseline that only scores."""

from fedpa.methods.baselines import FrozenFoundation, TwoCounters
from fedpa.methods.biases import Biases
from fedpa.methods.ditto import Ditto
from fedpa.methods.fedavg import FedAvg, FedProx
from fedpa.methods.fedmf import FedMF
from fedpa.methods.fedncf import FedNCF
from fedpa.methods.fedpa import FedPA
from fedpa.methods.fedrap import FedRAP
from fedpa.methods.fedrecon import FedRecon
from fedpa.methods.fedrep import FedRep
from fedpa.methods.gpfedrec import GPFedRec
from fedpa.methods.lora import FedIT, FedSALoRA, FFALoRA, PersonalLoRA
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
from fedpa.methods.on_device import HeadOnly, LocalOnly, UserBias
from fedpa.methods.pfedrec import PFedRec
from fedpa.methods.pooled import Pooled
from fedpa.methods.trees import Trees

__all__ = [
    "Baseline",
    "Biases",
    "Ditto",
    "FFALoRA",
    "FedAvg",
    "FedIT",
    "FedMF",
    "FedNCF",
    "FedPA",
    "FedProx",
    "FedRAP",
    "FedRecon",
    "FedRep",
    "FedSALoRA",
    "FederatedMethod",
    "FrozenFoundation",
    "GPFedRec",
    "HeadOnly",
    "LocalOnly",
    "Method",
    "PFedRec",
    "PersonalLoRA",
    "Pooled",
    "Trees",
    "TwoCounters",
    "UserBias",
    "compared_specs",
    "find_method",
    "method_names",
    "parse_spec",
    "register",
    "title_of",
]
