"""A node's side of a run: its data, what its devices keep, and what it answers to each kind of letter.

Flower starts a new process for every message and keeps nothing between two of them. All that a node keeps is on its own
disk, in the folder that `store=...` of its ``--node-config`` names: per run a folder with the run's config, everybody's
item counts, the generations of what its users' devices keep, and its last answer. What is asked a second time, because
the first answer got lost, is answered from there.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from fedpa.drivers.flower.letter import Letter, packed, unpacked
from fedpa.durable import replace
from fedpa.errors import ArtifactError, ConfigError
from fedpa.federation.form import Message, Refused

__all__ = ["Desk"]

_LAST, _TALLY, _CONFIG = "last.letter", "tally.safetensors", "order.json"
_LOCK_SECONDS = 60.0
