"""Which settings a cell is measured with: the preset's, chosen ones over them, and the caller's over those."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arrays import toy
from fedpa.comparison.plan import Planned, applicable, check_task, plan
from fedpa.errors import ConfigError
from fedpa.methods import FedPA, find_method
from fedpa.tuning.chosen import Chosen, write_chosen

CHOSEN: dict[str, Any] = {
    "lr": 0.2,
    "groups": ["kind"],
    "personal_decay": 3.0,
    "wide_rate": 7.0,
    "user_lora": True,
    "lora": True,
    "gate": True,
    "personal_embedding": True,
    "wide": True,
    "item_bias": True,
    "personal_bias": True,
}
"""As if everything had been chosen, what an ablation leaves out included."""


def planned(folder: Path, *specs: str, tuned: bool = True, **settings: Any) -> dict[str, Planned]:
    """By spec, for a data set whose default preset and one ablation were tuned."""
    file = folder / "chosen.yaml"
    whole, ablation = Chosen(CHOSEN, 20, 0.6, 0.5), Chosen({"lr": 0.9}, 3, 0.5, 0.4)
    write_chosen(file, {("click", "fedpa"): whole, ("click", "fedpa+no-wide"): ablation})
    data = toy(3, np.full(3, 2))
    return {one.cell.spec: one for one in plan(specs, {"click": data}, 1, "any", file if tuned else False, settings)}


LACKS: dict[str, tuple[str, Any]] = {
    "no-user-lora": ("user_lora", False),
    "no-group-lora": ("groups", ()),
    "no-lora": ("lora", False),
    "no-gate": ("gate", False),
    "no-personal-embeddings": ("personal_embedding", False),
    "no-wide": ("wide", False),
    "no-item-bias": ("item_bias", False),
    "no-item-counts": ("item_counts", 0),
    "no-user-bias": ("personal_bias", False),
    "no-prior": ("personal_decay", 0.0),
}


@pytest.mark.parametrize("preset", sorted(FedPA.follows))
def test_an_ablation_has_what_was_chosen_for_the_whole_but_for_its_part(tmp_path: Path, preset: str) -> None:
    key, value = LACKS[preset]
    one = planned(tmp_path, f"fedpa+{preset}")[f"fedpa+{preset}"]
    assert one.settings == {name: found for name, found in CHOSEN.items() if name != key}
    assert getattr(find_method("fedpa").configured(preset, one.settings).settings, key) == value
    assert one.chosen is not None
    assert one.note["settings_from"] == "tuned"
    assert one.note["trials"] == 20


def test_the_default_has_all_that_was_chosen_and_what_follows_nothing_has_none_of_it(tmp_path: Path) -> None:
    found = planned(tmp_path, "fedpa", "fedpa+repaired", "fedpa+reference", "local-only", "two-counters")
    assert found.pop("fedpa").settings == CHOSEN
    for one in found.values():
        assert (one.settings, one.chosen, one.note["settings_from"]) == ({}, None, "preset")


def test_the_callers_settings_come_last(tmp_path: Path) -> None:
    found = planned(tmp_path, "fedpa", "fedpa+no-prior", "two-counters", lr=0.4, wide_rate=1.0, rounds=2)
    assert found["fedpa"].settings == {**CHOSEN, "lr": 0.4, "wide_rate": 1.0, "rounds": 2}
    without = {name: value for name, value in CHOSEN.items() if name != "personal_decay"}
    assert found["fedpa+no-prior"].settings == {**without, "lr": 0.4, "wide_rate": 1.0, "rounds": 2}
    assert found["two-counters"].settings.keys() == {"lr", "rounds"}


def test_untuned_the_presets_are_measured(tmp_path: Path) -> None:
    for one in planned(tmp_path, "fedpa", "fedpa+no-prior", tuned=False).values():
        assert (one.settings, one.chosen) == ({}, None)


def test_what_is_nearest_to_a_slip_is_named() -> None:
    for task, fix in (("clik", "write click"), ("zzz", "name one of them; see `--help`")):
        with pytest.raises(ConfigError, match=f"unknown task '{task}', expected click or topk") as caught:
            check_task(task)
        assert caught.value.fix == fix
    for setting, fix in (("ranks", "write rank"), ("zzz", "leave it out")):
        with pytest.raises(ConfigError, match=f"setting '{setting}': none of the methods has it") as caught:
            applicable({setting: 1}, ["two-counters", "fedpa"])
        assert caught.value.fix == fix
