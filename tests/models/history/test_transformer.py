"""The transformer reads what came before, nothing else, and to the bit the same in any company."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedpa.adaptation import adapt
from fedpa.data.dataset import Dataset, Part
from fedpa.data.past import Past, Queries
from fedpa.errors import ArtifactError, ConfigError
from fedpa.evaluation.metrics import auc
from fedpa.federation.rows import ShardRows
from fedpa.models.foundation import Foundation, load_foundation
from fedpa.models.history import LightHistory, TransformerHistory
from fedpa.models.history.encoder import GAPS, Encoder
from fedpa.models.history.windows import Windows, gap_codes
from fedpa.models.inputs import open_examples, open_queries
from fedpa.models.learned import inputs_of
from fedpa.models.pretrain import PretrainSettings, pretrain
from prepared import Small, small

ENCODER: dict[str, Any] = {
    "reader": "transformer",
    "taste_width": 0,
    "encoder_width": 8,
    "encoder_length": 10,
    "encoder_folds": 2,
    "lr": 0.01,
    "batch_size": 256,
    "epochs": 2,
}
CPU = torch.device("cpu")


class Made(NamedTuple):
    dataset: Dataset
    foundation: Foundation
    reader: TransformerHistory
    kinds: NDArray[np.int32]
    queries: Queries

    def read(self, queries: Queries, past: Past | None = None) -> NDArray[np.float32]:
        return self.reader.read(past or self.dataset.past, self.kinds, queries)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small(tmp_path_factory)


@pytest.fixture(scope="module")
def made(base: Small) -> Made:
    """Queries are all rows of private users, whose pasts are longer than a window."""
    foundation = pretrain(base.dataset, **ENCODER)
    reader = foundation.inputs.history
    assert isinstance(reader, TransformerHistory)
    queries = ShardRows.of(base.dataset, dtype=torch.float32, device=CPU).queries()
    assert queries.views.max() > reader.encoder.length
    return Made(base.dataset, foundation, reader, reader.kinds_of(base.dataset), queries)


def changed(past: Past, where: NDArray[np.bool_]) -> Past:
    """Other items and times, and the other click, in some rows."""
    other = copy.copy(past)
    other.item = np.where(where, (past.item + 7) % 50, past.item)
    other.click = past.click ^ where
    other.time = np.where(where, past.time * 2 + 1, past.time)
    return other


# Windows


def test_windows_by_hand() -> None:
    views = np.arange(10)
    zeros = np.zeros(10, np.int64)
    queries = Queries(zeros, zeros, views, zeros, zeros[:, None], zeros[:, None], zeros[:, None], zeros, zeros)
    windows = Windows.of(queries, 4)
    assert windows.begin.tolist() == [0, 2, 4, 6]
    assert windows.end.tolist() == [4, 6, 8, 9]
    assert windows.window.tolist() == [0, 0, 0, 0, 0, 1, 1, 2, 2, 3]
    assert windows.prefix.tolist() == [0, 1, 2, 3, 4, 3, 4, 3, 4, 3]


def test_gaps_are_in_octaves_of_the_unit() -> None:
    codes = gap_codes(np.array([0, 1, 9, 10, 19, 20, 10**9]), 10.0)
    middle = codes[3]
    assert codes.tolist() == [0, middle - 4, middle - 1, middle, middle, middle + 1, GAPS - 1]


def test_rows_of_a_window_by_hand(made: Made) -> None:
    past = made.dataset.past
    user = int(np.flatnonzero(np.diff(past.starts) >= 12)[0])
    chosen = made.queries.at(np.array([0, 1]))
    asked = Queries(**{**vars(chosen), "user": np.array([user] * 2), "views": np.array([12, 11])})
    windows = Windows.of(asked, 10)
    items, clicked, gaps = windows.events(past, made.reader.unit)
    first = past.starts[user] + 5
    assert (windows.begin.tolist(), windows.end.tolist(), windows.prefix.tolist()) == ([5], [12], [7, 6])
    assert items[0].tolist() == [*past.item[first : first + 7], 0, 0, 0]
    assert clicked[0].tolist() == [*past.click[first : first + 7], 0, 0, 0]
    assert gaps[0, 0] == gap_codes(past.time[first : first + 1] - past.time[first - 1 : first], made.reader.unit)[0]


# What may be read


def test_the_future_of_every_prefix_moves_nothing(made: Made) -> None:
    """Whatever stands from a row on, earlier prefixes are read to the same bytes; later ones are not."""
    past = made.dataset.past
    place = np.arange(len(past.item)) - np.repeat(past.starts[:-1], np.diff(past.starts))
    before = made.read(made.queries)
    for first in (0, 1, 4, 9, 12):
        after = made.read(made.queries, changed(past, place >= first))
        early = made.queries.views <= first
        np.testing.assert_array_equal(after[early], before[early])
        assert not np.array_equal(after[~early], before[~early])


@pytest.mark.parametrize("first", [Part.VAL, Part.TEST])
def test_nothing_after_the_cut_is_read(made: Made, first: Part) -> None:
    """A row knows nothing of its own part's rows or of later parts', its own user's or another's."""
    counted = made.dataset.counted
    late = np.isin(counted.part[counted.part < Part.UNBIASED], (first, Part.TEST))
    assert late.any()
    rows = ShardRows.of(made.dataset, dtype=torch.float32, device=CPU)
    queries = made.queries.at(np.flatnonzero(rows.part <= first))
    past = changed(made.dataset.past, late)
    np.testing.assert_array_equal(made.read(queries, past), made.read(queries))


def test_the_gradient_reaches_no_later_state() -> None:
    torch.manual_seed(0)
    encoder = Encoder([3], 0, width=8, layers=2, heads=2, length=6).eval()
    vectors = torch.randn(2, 6, 8, requires_grad=True)
    states = encoder(vectors, torch.randint(2, (2, 6)), torch.randint(GAPS, (2, 6)))
    for prefix in range(7):
        weights = torch.randn(2, 8, generator=torch.Generator().manual_seed(prefix))
        (moved,) = torch.autograd.grad(
            (states[:, prefix] * weights).sum(), vectors, retain_graph=True, allow_unused=True
        )
        assert torch.all(moved[:, prefix:] == 0)
        assert torch.all(moved[:, :prefix].abs().amax(-1) > 0)


def test_what_lies_before_the_window_is_not_read(made: Made) -> None:
    long = made.queries.at(np.flatnonzero(made.queries.views > made.reader.encoder.length))
    past = made.dataset.past
    windows = Windows.of(long, made.reader.encoder.length)
    far = np.zeros(len(past.item), np.bool_)
    for user, begin in zip(windows.user, windows.begin, strict=True):
        if begin == windows.begin[windows.user == user].min():
            far[past.starts[user] : past.starts[user] + begin - 1] = True  # the gap to the row before is read
    assert far.any()
    before = made.reader.said(past, made.kinds, long)
    np.testing.assert_array_equal(made.reader.said(changed(past, far), made.kinds, long), before)


# Company


def test_prefixes_at_once_are_those_one_by_one(made: Made) -> None:
    at_once = made.read(made.queries)
    user = made.queries.user[np.argmax(made.queries.views)]
    for row in np.flatnonzero(made.queries.user == user):
        np.testing.assert_array_equal(made.read(made.queries.at(slice(row, row + 1))), at_once[row : row + 1])


@pytest.mark.parametrize("threads", [1, 2])
def test_any_company_gives_equal_bytes(made: Made, threads: int) -> None:
    whole = made.read(made.queries)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for seed, pieces in enumerate((1, 2, 3, 7, 50)):
            order = np.random.default_rng(seed).permutation(len(made.queries))
            for chosen in np.array_split(order, pieces):
                np.testing.assert_array_equal(made.read(made.queries.at(chosen)), whole[chosen])
    finally:
        torch.set_num_threads(before)


def test_a_catalogue_is_read_as_its_items_are(made: Made) -> None:
    some = made.queries.at(slice(0, 20))
    n_items = made.dataset.n_items
    every = np.broadcast_to(np.arange(n_items), (20, n_items))
    counts = np.zeros_like(every)
    catalogue = Queries(**{**vars(some), "items": every, "item_views": counts, "item_clicks": counts})
    found = made.reader.said(made.dataset.past, made.kinds, catalogue)
    own = made.reader.said(made.dataset.past, made.kinds, some)
    np.testing.assert_array_equal(found[np.arange(20), some.items[:, 0]], own[:, 0])


# Items


def test_items_that_open_users_never_saw_are_scored_by_their_features(made: Made) -> None:
    seen = np.unique(made.dataset.item[made.dataset.rows("foundation")])
    place = made.kinds[:, -1]
    assert np.array_equal(np.flatnonzero(place), seen)
    own = made.reader.encoder.ids.weight
    assert torch.all(own[0] == 0)
    assert torch.all(own[1:].abs().amax(-1) > 0)


def test_an_item_added_later_is_scored_by_its_features(made: Made) -> None:
    """Two that differ from known items in nothing but the id: equal to each other, and nothing else moves."""
    known = int(np.flatnonzero(made.kinds[:, -1])[0])
    added = made.kinds[[known, known]].copy()
    added[:, -1] = 0
    kinds = np.concatenate([made.kinds, added])
    some = made.queries.at(slice(0, 10))
    here = np.array([known, len(kinds) - 2, len(kinds) - 1])
    asked = Queries(
        **{
            **vars(some),
            "items": np.tile(here, (10, 1)),
            "item_views": np.zeros((10, 3)),
            "item_clicks": np.zeros((10, 3)),
        }
    )
    found = made.reader.said(made.dataset.past, kinds, asked)[:, :, 0]
    np.testing.assert_array_equal(found[:, 1], found[:, 2])
    assert np.all(found[:, 0] != found[:, 1])
    own = made.reader.said(made.dataset.past, made.kinds, some)
    np.testing.assert_array_equal(made.reader.said(made.dataset.past, kinds, some), own)


def test_without_item_embeddings_only_features_count(base: Small) -> None:
    foundation = pretrain(base.dataset, **(ENCODER | {"encoder_items": False, "encoder_folds": 1, "epochs": 1}))
    reader = foundation.inputs.history
    assert isinstance(reader, TransformerHistory)
    assert not reader.kinds_of(base.dataset)[:, -1].any()
    assert len(reader.encoder.ids.weight) == 1


# Training


def test_it_learns_what_the_clicks_depend_on(base: Small) -> None:
    """Clicks of open users that it was not trained on, by its logit alone."""
    foundation = pretrain(base.dataset, **(ENCODER | {"epochs": 8, "encoder_folds": 1}))
    facts = foundation.facts["history"]
    assert 1 <= facts["best_epoch"] <= facts["epochs"] <= 8
    assert facts["held_out"]["auc"] > 0.55
    reader = foundation.inputs.history
    assert isinstance(reader, TransformerHistory)
    queries = open_queries(base.dataset, Part.FOUNDATION_VAL)
    label = base.dataset.label[base.dataset.rows("foundation_val")]
    said = reader.said(base.dataset.past, reader.kinds_of(base.dataset), queries)[:, 0, 0]
    value = auc(label, said)
    assert value is not None
    assert value > 0.55


def test_equal_seeds_give_equal_weights(made: Made) -> None:
    torch.manual_seed(99)
    assert pretrain(made.dataset, **ENCODER).hash == made.foundation.hash
    assert pretrain(made.dataset, seed=1, **ENCODER).hash != made.foundation.hash


def test_evidence_to_train_on_is_out_of_fold(base: Small) -> None:
    """Of other encoders, which never saw those users; with one fold it is the reader's own."""
    opened, judged = (open_examples(base.dataset, part) for part in (Part.FOUNDATION, Part.FOUNDATION_VAL))
    for folds in (1, 2):
        settings = PretrainSettings(**(ENCODER | {"encoder_folds": folds}))
        learned = inputs_of(base.dataset, opened, judged, settings, seed=0, device=CPU)
        own = learned.inputs.read(base.dataset, opened.queries)
        assert own is not None
        assert learned.evidence is not None
        assert torch.equal(own[:, 0, :-1], learned.evidence[:, :-1])
        assert torch.equal(own[:, 0, -1], learned.evidence[:, -1]) == (folds == 1)
        assert abs(float(learned.evidence[:, -1].mean())) < 1e-4


def test_users_without_a_past_may_fill_a_batch(base: Small) -> None:
    """Only first rows: there is nothing but the learned start to read."""
    opened, judged = (open_examples(base.dataset, part) for part in (Part.FOUNDATION, Part.FOUNDATION_VAL))
    here = np.flatnonzero(opened.queries.views == 0)
    first = opened._replace(
        queries=opened.queries.at(here), context=opened.context[here], label=opened.label[torch.from_numpy(here)]
    )
    settings = PretrainSettings(**(ENCODER | {"batch_size": 1, "epochs": 1, "encoder_folds": 1}))
    learned = inputs_of(base.dataset, first, judged, settings, seed=0, device=CPU)
    assert learned.evidence is not None
    assert torch.isfinite(learned.evidence).all()


def test_heads_that_do_not_divide_the_width(base: Small) -> None:
    with pytest.raises(ConfigError, match="encoder_heads': 3 does not divide encoder_width, 8"):
        pretrain(base.dataset, **(ENCODER | {"encoder_heads": 3}))


# Files


def test_a_saved_reader_says_the_same(made: Made, tmp_path: Path) -> None:
    made.foundation.save(tmp_path / "foundation")
    loaded = load_foundation(tmp_path / "foundation")
    assert loaded.hash == made.foundation.hash
    reader = loaded.inputs.history
    assert isinstance(reader, TransformerHistory)
    kinds = reader.kinds_of(made.dataset)
    np.testing.assert_array_equal(reader.read(made.dataset.past, kinds, made.queries), made.read(made.queries))


def test_its_weights_are_in_the_hash(made: Made) -> None:
    inputs = copy.deepcopy(made.foundation.inputs)
    assert isinstance(inputs.history, TransformerHistory)
    with torch.no_grad():
        inputs.history.encoder.start[0] += 1
    other = Foundation.of(made.foundation.model, made.foundation.features, {}, inputs)
    assert other.hash != made.foundation.hash


def test_a_reader_without_its_items(made: Made, tmp_path: Path) -> None:
    made.foundation.save(tmp_path / "foundation")
    (tmp_path / "foundation" / "history.parquet").unlink()
    with pytest.raises(ArtifactError, match=r"foundation: cannot be read .*its items are missing"):
        load_foundation(tmp_path / "foundation")


# Adaptation


def test_it_is_adapted_and_recommends(made: Made, tmp_path: Path) -> None:
    made.foundation.save(tmp_path / "foundation")
    path = tmp_path / "foundation"
    run = adapt(made.foundation, made.dataset, out=tmp_path / "run", foundation_path=path, rounds=1, patience=0)
    user = made.dataset.user_ids[int(made.queries.user[0])]
    assert len(run.recommender.recommend(user, 5).items) == 5


def test_pooled_training_reads_it(made: Made, tmp_path: Path) -> None:
    run = adapt(None, made.dataset, out=tmp_path / "run", method="pooled", **(ENCODER | {"encoder_folds": 1}))
    assert isinstance(load_foundation(tmp_path / "run" / "pooled").inputs.history, TransformerHistory)
    assert np.isfinite(run.summary["splits"]["test"]["logloss"])


def test_the_light_evidence_comes_first(made: Made) -> None:
    light = made.reader.light
    assert isinstance(light, LightHistory)
    own = light.read(made.dataset.past, light.kinds_of(made.dataset), made.queries)
    np.testing.assert_array_equal(made.read(made.queries)[..., : light.width], own)
    assert made.reader.width == light.width + 1
