"""Every verb of the command line does what the package does, and says so."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from command import ROUNDS, World, answer, fedpa, make_world
from fedpa import load_dataset, load_foundation, load_run
from fedpa.data.dataset import COLD, PRIVATE, describe
from fedpa.methods import method_names
from fedpa.models.pretrain import pretrain

VERBS = (
    "data synth", "data download", "data describe", "data check", "data shard", "prepare", "pretrain", "distill",
    "adapt", "evaluate", "recommend", "export", "forget", "import-reference", "methods", "rollback", "tune", "compare",
    "reproduce", "demo", "flower keys", "flower new",
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.name, path.read_bytes()


def user_of(world: World, side: int = PRIVATE) -> int:
    dataset = load_dataset(world.dataset)
    return int(dataset.user_ids[int((dataset.side == side).argmax())])


@pytest.mark.parametrize("verb", VERBS)
def test_help_ends_with_an_example(verb: str) -> None:
    text = fedpa(*verb.split(), "--help").stdout
    assert f"Example:\n    fedpa {verb}" in text
    assert "--json" in text


def test_help_names_every_verb_in_order_of_use_and_loads_nothing_heavy() -> None:
    listed = fedpa("--help").stdout.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in listed] == list(dict.fromkeys(verb.split()[0] for verb in VERBS))
    code = "import fedpa.cli, sys; print({'torch', 'polars', 'numpy', 'pydantic', 'rich'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_version() -> None:
    assert fedpa("--version").stdout == "fedpa 0.1.0\n"


def test_synth_counts_what_it_wrote(tmp_path: Path) -> None:
    found = answer("data", "synth", tmp_path / "raw", "--users", 30, "--items", 20, "--rows-per-user", 5, "--seed", 3)
    log = pl.read_csv(tmp_path / "raw/data/log_standard_4_22_to_5_08_pure.csv")
    assert found == {
        "raw": str(tmp_path / "raw"),
        "users": 30,
        "items": 20,
        "interactions": len(log),
        "clicks": log["is_click"].sum(),
    }


def test_prepare_and_describe_say_what_the_data_set_says(world: World, tmp_path: Path) -> None:
    found = answer("prepare", "kuairand-pure", "--raw", world.raw, "--out", tmp_path / "dataset", "--cold-users")
    assert found.pop("dataset") == str(tmp_path / "dataset")
    assert found == describe(load_dataset(world.dataset)) == answer("data", "describe", world.dataset)
    assert "follow_user_num_range" in fedpa("data", "describe", world.dataset).stdout


def test_options_of_prepare_reach_the_data_set(world: World, tmp_path: Path) -> None:
    ids = load_dataset(world.dataset).user_ids
    sides = pl.DataFrame({"user_id": ids, "side": ["open" if number % 2 else "private" for number in ids]})
    sides.write_csv(tmp_path / "division.csv")
    options = ("--division", tmp_path / "division.csv", "--split", "global-time", "--groups", "register_days_range")
    more = ("--features", "reference", "--min-rows", 3, "--label", "click", "--seed", 5)
    found = answer("prepare", "kuairand-pure", "--raw", world.raw, "--out", tmp_path / "dataset", *options, *more)
    settings = found["settings"]
    assert settings["division"]["name"] == "division.csv"
    kept = {key: settings[key] for key in ("features", "min_rows", "split", "cold_users", "groups", "seed")}
    assert kept == {
        "features": "reference",
        "min_rows": 3,
        "split": "global-time",
        "cold_users": 0.0,
        "groups": ["register_days_range"],
        "seed": 5,
    }


def test_prepare_of_own_tables(tmp_path: Path) -> None:
    rows = [f"u{u},i{(u * t) % 7},{t},{(u + t) % 2}" for u in range(12) for t in range(8)]
    (tmp_path / "log.csv").write_text("who,what,time,click\n" + "\n".join(rows) + "\n")
    (tmp_path / "mine.yaml").write_text(
        "name: mine\ninteractions: {file: log.csv, user: who, item: what, labels: [click]}\n"
    )
    schema = ("--schema", tmp_path / "mine.yaml")
    found = answer("prepare", "tables", "--raw", tmp_path, *schema, "--out", tmp_path / "dataset")
    assert (found["source"], found["counts"]["rows"], found["counts"]["users"]) == ("mine", 96, 12)


def test_row_features_are_asked_for_by_name(world: World, tmp_path: Path) -> None:
    options = ("--raw", world.raw, "--out", tmp_path / "dataset")
    found = answer("prepare", "kuairand-pure", *options, "--row-features", "tab, hour")
    assert [*found["features"]["context"]][4:] == ["row:tab", "row:hour"]
    assert found["settings"]["row_features"] == ["tab", "hour"]
    assert answer("data", "describe", tmp_path / "dataset")["features"] == found["features"]
    assert "row:tab" in fedpa("data", "describe", tmp_path / "dataset").stdout


def test_pretrain_is_the_function_of_the_package(world: World, tmp_path: Path) -> None:
    options = ("--set", "epochs=2", "--set", "hidden=[16, 4]", "--set", "lr=1e-3", "--seed", 4)
    found = answer("pretrain", world.dataset, "--out", tmp_path / "foundation", *options)
    expected = pretrain(load_dataset(world.dataset), seed=4, epochs=2, hidden=(16, 4), lr=1e-3)
    assert found == {"foundation": str(tmp_path / "foundation"), "hash": expected.hash, **expected.facts}
    assert load_foundation(tmp_path / "foundation").hash == expected.hash


def test_the_same_seed_gives_the_same_bytes(world: World, tmp_path: Path) -> None:
    found = answer("adapt", world.foundation, world.dataset, "--out", tmp_path / "run", *ROUNDS)
    assert found == {"run": str(tmp_path / "run"), **load_run(tmp_path / "run").summary}
    ours, theirs = dict(files(tmp_path / "run")), dict(files(world.run))
    for name in ("personal.safetensors", "shared.safetensors", "config.yaml"):
        assert ours[name] == theirs[name], name
    summaries = [json.loads(each["summary.json"]) for each in (ours, theirs)]
    for summary in summaries:
        assert summary.pop("seconds_per_round") > 0
    assert summaries[0] == summaries[1]

    fedpa("adapt", world.foundation, world.dataset, "--out", tmp_path / "other", *ROUNDS, "--seed", 1)
    assert dict(files(tmp_path / "other"))["personal.safetensors"] != ours["personal.safetensors"]


def test_settings_and_presets_reach_the_run(world: World, tmp_path: Path) -> None:
    options = ("--preset", "reference", "--set", "rounds=1", "--set", "groups=[register_days_range]", "--seed", 9)
    found = answer("adapt", world.foundation, world.dataset, "--out", tmp_path / "run", *options)
    run = load_run(tmp_path / "run")
    assert (found["preset"], found["seed"], found["rounds"]) == ("reference", 9, 1)
    settings = run.config["settings"]
    assert settings["lora_init"] == "zero"
    assert settings["groups"] == ["register_days_range"]
    assert "group(follow_user_num_range)" not in found["parameters"]


@pytest.mark.parametrize("verb", ["synth", "prepare", "pretrain", "adapt"])
def test_an_existing_folder_is_replaced_only_when_told(world: World, tmp_path: Path, verb: str) -> None:
    out = tmp_path / "out"
    command: dict[str, tuple[object, ...]] = {
        "synth": ("data", "synth", out, "--users", 20, "--items", 10),
        "prepare": ("prepare", "kuairand-pure", "--raw", world.raw, "--out", out),
        "pretrain": ("pretrain", world.dataset, "--out", out, "--set", "epochs=1"),
        "adapt": ("adapt", "-", world.dataset, "--out", out, "--method", "two-counters"),
    }
    out.mkdir()
    (out / "mine").touch()
    result = fedpa(*command[verb], code=2)
    assert result.stderr.startswith(f"error: {out}: already exists")
    assert "--overwrite" in result.stderr
    assert [path.name for path in out.iterdir()] == ["mine"]
    fedpa(*command[verb], "--overwrite")
    assert "mine" not in [path.name for path in out.iterdir()]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_evaluate_shows_the_yardsticks(world: World) -> None:
    (world.run / "predictions.parquet").unlink(missing_ok=True)
    assert "predictions" not in answer("evaluate", world.run, "--no-predictions")
    assert not (world.run / "predictions.parquet").exists()
    found = answer("evaluate", world.run, "--bootstrap", 10)
    run = load_run(world.run)
    assert found["metrics"] == json.loads(json.dumps(run.evaluate("test", bootstrap=10)))
    assert found["yardsticks"] == json.loads(json.dumps(run.yardsticks("test", bootstrap=10)))
    assert [*found["yardsticks"]] == ["two counters", "frozen foundation", "FedPA", "oracle"]
    assert pl.read_parquet(found["predictions"]).equals(run.predictions())
    assert {path.name for path in world.run.iterdir()} == {
        "checkpoints", "config.yaml", "metrics.jsonl", "personal.safetensors", "predictions.parquet",
        "shared.safetensors", "summary.json",
    }  # fmt: skip
    text = fedpa("evaluate", world.run).stdout
    assert all(name in text for name in ("two counters", "frozen foundation", "FedPA", "oracle", "GAUC", "log-loss"))


def test_evaluate_ranks_and_knows_the_other_parts(world: World) -> None:
    found = answer("evaluate", world.run, "--top-k", 5, "--ranking-users", 20, "--part", "val")
    assert found["part"] == "val"
    assert "ndcg@5" in found["metrics"]["ranking"]
    assert "ndcg@5" in fedpa("evaluate", world.run, "--top-k", 5, "--ranking-users", 20).stdout
    cold = answer("evaluate", world.run, "--part", "cold")
    assert [*cold["metrics"]] == ["support_0", "support_1", "support_3", "support_5"]
    assert "support_3" in fedpa("evaluate", world.run, "--part", "cold", "--no-predictions").stdout


def test_recommend_and_forget(world: World, tmp_path: Path) -> None:
    fedpa("adapt", world.foundation, world.dataset, "--out", tmp_path / "run", *ROUNDS)
    user = user_of(world)
    found = answer("recommend", tmp_path / "run", "--user", user, "-k", 3)
    assert found == load_run(tmp_path / "run").recommender.recommend(str(user), 3).as_dict()
    assert (len(found["items"]), found["notes"]) == (3, [])
    assert [*found["gates"]] == ["foundation", "user", "follow_user_num_range", "register_days_range"]
    text = fedpa("recommend", tmp_path / "run", "--user", user, "-k", 3).stdout
    assert all(str(item) in text for item in found["items"])

    forgotten = answer("forget", tmp_path / "run", "--user", user)
    assert forgotten["erased"] > 0
    assert "rows in the data set" in forgotten["cannot_undo"]
    assert answer("forget", tmp_path / "run", "--user", user)["erased"] == 0
    assert "forgotten" in answer("recommend", tmp_path / "run", "--user", user)["notes"][0]
    cold = fedpa("recommend", tmp_path / "run", "--user", user_of(world, COLD))
    assert "note: not a private user" in cold.stderr


def test_folders_may_move(world: World, tmp_path: Path) -> None:
    fedpa("prepare", "kuairand-pure", "--raw", world.raw, "--out", tmp_path / "dataset")
    fedpa("pretrain", tmp_path / "dataset", "--out", tmp_path / "foundation", "--set", "epochs=1")
    fedpa("adapt", tmp_path / "foundation", tmp_path / "dataset", "--out", tmp_path / "run", "--set", "rounds=1")
    (tmp_path / "dataset").rename(tmp_path / "data")
    (tmp_path / "foundation").rename(tmp_path / "base")
    user = user_of(World(world.raw, tmp_path / "data", world.foundation, world.run))
    for verb in (("evaluate",), ("recommend", "--user", user), ("forget", "--user", user)):
        fedpa(verb[0], tmp_path / "run", *verb[1:], code=2)
        moved = ("--dataset", tmp_path / "data", "--foundation", tmp_path / "base")
        fedpa(verb[0], tmp_path / "run", *verb[1:], *moved)
    result = fedpa("evaluate", tmp_path / "run", "--dataset", world.dataset, code=2)
    assert "is not the data set of this run" in result.stderr


MINE = '''
from torch import Tensor, sigmoid
from fedpa.federation.parameters import PERSONAL, Scope
from fedpa.methods import FedPA


class LocalHead(FedPA):
    """FedPA whose output head stays with its user."""

    name = "local-head"

    def scope(self, name: str) -> Scope:
        return PERSONAL if name.startswith("head.") else super().scope(name)


class Squared(FedPA):
    """FedPA with the Brier score as the local loss."""

    name = "squared"

    def loss(self, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        return ((sigmoid(logits) - labels).square() * weights).sum(1)
'''


def test_a_method_of_ones_own(world: World, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    base = load_run(world.run).summary
    found: dict[str, dict[str, Any]] = {}
    for name in ("LocalHead", "Squared"):
        method = ("--method", f"{tmp_path / 'mine.py'}:{name}")
        found[name] = answer("adapt", world.foundation, world.dataset, "--out", tmp_path / name, *method, *ROUNDS)
        assert found[name]["method"] in answer("evaluate", tmp_path / name)["yardsticks"]
    head = base["parameters"]["personal"] - found["LocalHead"]["parameters"]["personal"]
    assert head == found["LocalHead"]["parameters"]["shared"] - base["parameters"]["shared"] == -9
    saved = found["LocalHead"]["bytes_up_per_user_round"] - base["bytes_up_per_user_round"]
    assert saved == 4 * head
    assert found["Squared"]["parameters"] == base["parameters"]
    losses = [load_run(folder).history[1]["train_loss"] for folder in (world.run, tmp_path / "Squared")]
    assert losses[1] < 0.3 < losses[0]


def test_methods_without_a_foundation(world: World, tmp_path: Path) -> None:
    counters = ("--method", "two-counters")
    found = answer("adapt", "-", world.dataset, "--out", tmp_path / "run", *counters)
    assert found["bytes_up_per_user_round"] == 0
    assert [*answer("evaluate", tmp_path / "run")["yardsticks"]] == ["two counters", "oracle"]
    result = fedpa("adapt", "-", world.dataset, "--out", tmp_path / "other", code=2)
    assert result.stderr.startswith("error: method fedpa: needs a foundation")


def test_methods_lists_every_method() -> None:
    found = answer("methods")
    assert sorted(found) == method_names()
    without = [
        "gate",
        "group-lora",
        "item-bias",
        "item-counts",
        "lora",
        "personal-embeddings",
        "prior",
        "user-bias",
        "user-lora",
        "wide",
    ]
    assert found["fedpa"]["presets"] == ["default", *(f"no-{part}" for part in without), "reference", "repaired"]
    assert all(each["about"].endswith(".") for each in found.values())
    assert "two-counters" in fedpa("methods").stdout


def test_import_reference(world: World, tmp_path: Path) -> None:
    features = ("--features", "reference")
    fedpa("prepare", "kuairand-pure", "--raw", world.raw, "--out", tmp_path / "dataset", *features)
    dataset = load_dataset(tmp_path / "dataset")
    sides = {"user": dataset.user_features, "video": dataset.item_features}
    state = {
        f"embedding_{side}_features.{each.name}.weight": torch.randn(each.size, 4)
        for side, found in sides.items()
        for each in found
    }
    into = 4 * len(state)
    state |= {"fc_layers.0.weight": torch.randn(6, into), "fc_layers.0.bias": torch.randn(6)}
    state |= {"affine_output.weight": torch.randn(1, 6), "affine_output.bias": torch.randn(1)}
    torch.save(state, tmp_path / "model.pth")
    out = ("--dataset", tmp_path / "dataset", "--out", tmp_path / "foundation")
    imported = answer("import-reference", tmp_path / "model.pth", *out)
    assert imported["imported"] == "model.pth"
    assert load_foundation(tmp_path / "foundation").hash == imported["hash"]
    fedpa("import-reference", tmp_path / "model.pth", *out, code=2)
    fedpa("import-reference", tmp_path / "model.pth", *out, "--overwrite")
    found = answer(
        "adapt", tmp_path / "foundation", tmp_path / "dataset", "--out", tmp_path / "run", "--set", "rounds=1",
        "--set", "gate_hidden=[8]",
    )  # fmt: skip
    assert found["rounds"] == 1


def test_download_is_the_function_of_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, out: Path, **options: Any) -> Path:
        asked.update(options, name=name, out=out)
        return out

    monkeypatch.setattr("fedpa.data.download.download", download)
    assert answer("data", "download", "kuairand-pure", tmp_path / "raw") == {"raw": str(tmp_path / "raw")}
    assert asked == {"name": "kuairand-pure", "out": tmp_path / "raw", "overwrite": False, "progress": False}


@pytest.mark.slow
def test_demo_prints_the_table(tmp_path: Path) -> None:
    found = answer("demo", "--dir", tmp_path / "demo", "--users", 120)
    assert [*found["yardsticks"]] == ["two counters", "frozen foundation", "FedPA", "oracle"]
    result = fedpa("demo", "--dir", tmp_path / "demo", "--users", 120)
    assert "oracle" in result.stdout
    assert f"{found['bytes_up_per_user_round']:,.0f} bytes" in result.stdout
    assert "adapt" in result.stderr


WRONG: dict[str, tuple[tuple[object, ...], tuple[str, ...]]] = {
    "prepare, row feature": (
        ("prepare", "kuairand-pure", "--raw", "RAW", "--out", "OUT", "--row-features", "tab,day"),
        ("row_features: found 'day', synthetic offers tab, hour", "To fix it: name some of these"),
    ),
    "prepare, reference": (
        (
            "prepare",
            "kuairand-pure",
            "--raw",
            "RAW",
            "--out",
            "OUT",
            "--row-features",
            "tab",
            "--features",
            "reference",
        ),
        ("row_features: the published encoding has none", "To fix it: use the causal features"),
    ),
    "check, no folder": (
        ("data", "check", "GONE"),
        ("{GONE}: expected a dataset folder, but it is not a folder", "To fix it: make it with `fedpa prepare"),
    ),
    "check, another folder": (
        ("data", "check", "RAW"),
        ("{RAW}: expected a dataset folder, but it holds no manifest.json", "To fix it: make it with `fedpa prepare"),
    ),
    "check, a foundation": (
        ("data", "check", "FOUNDATION"),
        ("{FOUNDATION}/manifest.json", "To fix it: make it with `fedpa prepare"),
    ),
    "compare, no folder": (
        ("compare", "GONE", "--out", "OUT"),
        ("{GONE}: expected a dataset folder, but it is not a folder", "To fix it: make it with `fedpa prepare"),
    ),
    "compare, method": (
        ("compare", "DATASET", "--out", "OUT", "--methods", "two-counters,fedp"),
        ("unknown method 'fedp'; did you mean 'fedpa'?", "To fix it: a method of your own is given as"),
    ),
    "compare, preset": (
        ("compare", "DATASET", "--out", "OUT", "--methods", "fedpa+referense"),
        ("method fedpa: unknown preset 'referense'", "To fix it: write reference"),
    ),
    "compare, no method": (
        ("compare", "DATASET", "--out", "OUT", "--methods", ","),
        ("methods: none was named", "To fix it: name some, or `all`"),
    ),
    "compare, task": (
        ("compare", "DATASET", "--out", "OUT", "--tasks", "click,topc"),
        ("unknown task 'topc', expected click or topk", "To fix it: write topk"),
    ),
    "compare, seeds": (
        ("compare", "DATASET", "--out", "OUT", "--seeds", 0),
        ("seeds: found 0, expected at least 1", "To fix it: give a larger number"),
    ),
    "compare, setting": (
        ("compare", "DATASET", "--out", "OUT", "--set", "roundz=1"),
        ("setting 'roundz': none of the methods has it", "To fix it: write rounds"),
    ),
    "compare, chosen": (
        ("compare", "DATASET", "--out", "OUT", "--chosen", "GONE"),
        ("{GONE}: cannot be read", "To fix it: give the chosen.yaml of `fedpa tune`"),
    ),
    "compare, out": (
        ("compare", "DATASET", "--out", "RAW", "--methods", "two-counters"),
        ("{RAW}: exists and is not the folder of a comparison", "To fix it: choose another folder"),
    ),
    "tune, no folder": (
        ("tune", "GONE", "--out", "OUT", "--methods", "fedpa"),
        ("{GONE}: expected a dataset folder, but it is not a folder", "To fix it: make it with `fedpa prepare"),
    ),
    "tune, method": (
        ("tune", "DATASET", "--out", "OUT", "--methods", "fedp"),
        ("unknown method 'fedp'; did you mean 'fedpa'?", "To fix it: a method of your own is given as"),
    ),
    "tune, task": (
        ("tune", "DATASET", "--out", "OUT", "--methods", "fedpa", "--task", "ranking"),
        ("unknown task 'ranking', expected click or topk", "To fix it: name one of them"),
    ),
    "tune, trials": (
        ("tune", "DATASET", "--out", "OUT", "--methods", "fedpa", "--trials", 0),
        ("trials: found 0, expected at least 1", "To fix it: give a larger number"),
    ),
    "tune, jobs": (
        ("tune", "DATASET", "--out", "OUT", "--methods", "fedpa", "--jobs", 0),
        ("jobs: found 0, expected at least 1", "To fix it: give a larger number"),
    ),
    "tune, seed": (
        ("tune", "DATASET", "--out", "OUT", "--methods", "fedpa", "--seed", -1),
        ("seed: found -1, expected at least 0", "To fix it: give a larger number"),
    ),
    "tune, setting": (
        ("tune", "DATASET", "--out", "OUT", "--methods", "fedpa", "--set", "zzz=1"),
        ("setting 'zzz': none of the methods has it", "To fix it: leave it out"),
    ),
    "tune, ranges": (
        ("tune", "DATASET", "--out", "OUT", "--methods", "fedpa", "--ranges", "GONE"),
        ("{GONE}: cannot be read", "To fix it: give a YAML file of ranges, or none"),
    ),
    "reproduce, no folder": (
        ("reproduce", "movielens-1m", "--raw", "GONE", "--out", "OUT"),
        (
            "{GONE}: expected the folder of MovieLens 1M, but it is not a folder",
            "To fix it: unpack the official archive",
        ),
    ),
    "reproduce, another folder": (
        ("reproduce", "movielens-100k", "--raw", "RAW", "--out", "OUT"),
        ("{RAW}: no u.data, the ratings of MovieLens 100K", "To fix it: name the folder of its files"),
    ),
    "reproduce, data set": (
        ("reproduce", "movielens-10m", "--raw", "RAW", "--out", "OUT"),
        ("cannot reproduce 'movielens-10m'", "To fix it: use one of movielens-100k, movielens-1m"),
    ),
    "reproduce, method": (
        ("reproduce", "movielens-1m", "--raw", "RAW", "--out", "OUT", "--methods", "fedmf,pfedrek"),
        ("methods: found 'pfedrek', expected some of fedmf, fedncf, fedrecon, pfedrec", "To fix it: write pfedrec"),
    ),
    "reproduce, another method": (
        ("reproduce", "movielens-1m", "--raw", "RAW", "--out", "OUT", "--methods", "fedpa"),
        ("methods: found 'fedpa', expected some of fedmf, fedncf, fedrecon, pfedrec", "To fix it: leave it out"),
    ),
    "reproduce, seeds": (
        ("reproduce", "movielens-1m", "--raw", "RAW", "--out", "OUT", "--seeds", 0),
        ("seeds: found 0, expected 1 or more", "To fix it: give a larger number"),
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_study_of_what_is_wrong_says_so_and_leaves_nothing(world: World, tmp_path: Path, case: str) -> None:
    arguments, expected = WRONG[case]
    places = {"GONE": tmp_path / "gone", "OUT": tmp_path / "out"}
    places |= {"RAW": world.raw, "DATASET": world.dataset, "FOUNDATION": world.foundation}
    before = sorted(world.raw.rglob("*"))
    result = fedpa(*(places.get(str(each), each) for each in arguments), code=2)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    for text in expected:
        assert text.format(**places) in result.stderr
    assert [*tmp_path.iterdir()] == []
    assert sorted(world.raw.rglob("*")) == before
