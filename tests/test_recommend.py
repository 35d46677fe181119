"""Recommendations and ranking against what can be counted by hand."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedpa.adaptation import adapt
from fedpa.data.dataset import COLD, OPEN, PRIVATE, Dataset, Part
from fedpa.data.prepare import prepare
from fedpa.data.sources import open_source
from fedpa.errors import ConfigError, DataError
from fedpa.federation.rows import group_values
from fedpa.models.pretrain import pretrain
from fedpa.recommend import Recommendation, catalogue_batch
from fedpa.run import Run
from prepared import ITEMS, QUICK, Small, quick_run, small


@pytest.fixture(scope="module", params=["causal", "reference"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return quick_run(tmp_path_factory, request.param)


@pytest.fixture(scope="module")
def timeless(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose scores depend on no time: reference features have no context."""
    return quick_run(tmp_path_factory, "reference")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small(tmp_path_factory)


def one(run: Run, user: int, k: int = 10) -> Recommendation:
    found = run.recommend(user, k)
    assert isinstance(found, Recommendation)
    return found


def of_side(run: Run, side: int, place: int = 0) -> tuple[int, int]:
    number = int(np.flatnonzero(run.dataset.side == side)[place])
    return number, run.dataset.user_ids[number]


def catalogue_logits(run: Run, local: int, context: torch.Tensor) -> torch.Tensor:
    """Logits of one private user for every item [items], in a context [1, items, features]."""
    shard, state, users = run.recommender.shard, run.server.state, np.array([local])
    numbers = run.rows.users[users]
    with torch.inference_mode():
        blocks, tables = shard.assembly.catalogue(shard.weights_of(users, state), users, numbers, state)
        batch = catalogue_batch(tables, numbers, torch.arange(run.dataset.n_items)[None], context)
        return run.model.forward(blocks, batch)[0][0]


def test_a_list_holds_the_users_best_unseen_items(run: Run) -> None:
    data = run.dataset
    for number in run.rows.users[:8]:
        user = data.user_ids[int(number)]
        found = one(run, user, 7)
        assert found.user == user
        assert len(found.items) == len(found.scores) == len(set(found.items)) == 7
        assert set(found.items) <= set(data.item_ids.to_list())
        begin, end = data.user_starts[number : number + 2]
        seen = set(data.item_ids.gather(data.item[begin:end].astype(np.int64)).to_list())
        assert not seen & set(found.items)
        assert found.scores == sorted(found.scores, reverse=True)
        assert all(0 < score < 1 for score in found.scores)
        longer = one(run, user, 20)
        assert longer.items[:7] == found.items
        whole = one(run, user, 10 * ITEMS)
        assert len(whole.items) == ITEMS - len(seen)
        assert set(whole.items) == set(data.item_ids.to_list()) - seen


def test_branches_explain_a_list(run: Run) -> None:
    found = one(run, of_side(run, 1)[1], 5)
    assert list(found.gates) == ["foundation", "user", *run.dataset.group_sizes]
    shares = np.array(list(found.gates.values()))
    assert shares.shape == (4, 5)
    np.testing.assert_allclose(shares.sum(0), 1, atol=1e-5)
    assert found.as_dict().keys() == {"user", "items", "scores", "gates", "notes"}


def test_branches_are_named_after_the_chosen_groups(made: Small, tmp_path: Path) -> None:
    found = adapt(
        made.foundation, made.dataset, out=tmp_path / "run", groups=["register_days_range"], **(QUICK | {"rounds": 1})
    )
    assert list(one(found, of_side(found, 1)[1]).gates) == ["foundation", "user", "register_days_range"]


def test_scores_are_those_of_the_rows(timeless: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing counted as seen, an item of a row has that row's score."""
    data = timeless.dataset
    monkeypatch.setitem(data.__dict__, "user_starts", np.zeros(data.n_users + 1, np.int64))
    for local in (0, 5, 11):
        user = data.user_ids[int(timeless.rows.users[local])]
        found = one(timeless, user, ITEMS)
        score = dict(zip(found.items, found.scores, strict=True))
        assert len(score) == ITEMS
        for place in np.flatnonzero(timeless.rows.user == local):
            item = data.item_ids[int(timeless.rows.items[place])]
            assert score[item] == pytest.approx(float(timeless.scores[place]), abs=1e-6)


def test_the_context_of_today(run: Run) -> None:
    """Counts after the last row: the score of the user's next view."""
    data = run.dataset
    number, user = of_side(run, 1, 2)
    found = one(run, user, ITEMS)
    local = int(np.flatnonzero(run.rows.users == number)[0])
    own = data.user_context_now()[number]
    items = data.item_context(np.array([2**62]))[0]
    context = torch.from_numpy(np.concatenate([items, np.tile(own, (ITEMS, 1))], 1).astype(np.int64))
    logits = catalogue_logits(run, local, context[None])
    expected = dict(zip(data.item_ids.to_list(), logits.sigmoid().tolist(), strict=True))
    assert {item: pytest.approx(expected[item], abs=1e-6) for item in found.items} == dict(
        zip(found.items, found.scores, strict=True)
    )


@pytest.fixture(scope="module")
def placed(made: Small, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on data that say on which surface and at which hour an item was shown."""
    folder = tmp_path_factory.mktemp("placed")
    source = open_source("kuairand-pure", made.folder / "raw")
    data = prepare(source, folder / "dataset", cold_users=0.2, row_features=["tab", "hour"])
    foundation = pretrain(data, out=folder / "foundation", epochs=2, lr=0.01, batch_size=256)
    return adapt(foundation, data, out=folder / "run", foundation_path=folder / "foundation", **QUICK)


@pytest.mark.parametrize("side", [PRIVATE, COLD])
def test_a_list_is_for_where_the_user_was_last(placed: Run, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = placed.dataset
    number, user = of_side(placed, side, 2)
    latest = data.row_codes[data.user_starts[number + 1] - 1]
    assert latest.all()
    seen: list[torch.Tensor] = []
    forward = placed.model.forward

    def spied(blocks: Any, batch: Any) -> Any:
        seen.append(batch.context)
        return forward(blocks, batch)

    monkeypatch.setattr(placed.recommender.model, "forward", spied)
    one(placed, user)
    items = data.item_context(np.array([2**62]))[0]
    own = np.concatenate([data.user_context_now()[number], latest])
    assert seen[0][0].tolist() == np.concatenate([items, np.tile(own, (ITEMS, 1))], 1).tolist()


def test_a_ranking_is_for_where_the_judged_row_was(placed: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    data, rows, seen = placed.dataset, placed.rows, []
    scores = placed.recommender._block_scores

    def block_scores(block: Any, item: torch.Tensor, own: torch.Tensor, queries: Any) -> torch.Tensor:
        seen.append(own)
        return scores(block, item, own, queries)

    monkeypatch.setattr(placed.recommender, "_block_scores", block_scores)
    placed.recommender.ranking("test", 5)
    here = rows.part == Part.TEST
    users = np.unique(rows.user[here & (rows.labels.numpy() > 0)])
    first = rows.row[here][np.searchsorted(rows.user[here], users)]
    assert torch.cat(seen)[:, 2:].tolist() == data.row_codes[first].tolist()


def test_cold_users_are_judged_where_their_rows_were(placed: Run) -> None:
    assert set(placed.evaluate("cold")) == {f"support_{support}" for support in (0, 1, 3, 5)}


@pytest.mark.parametrize("side", [OPEN, COLD])
def test_newcomers_get_a_list_and_a_note(run: Run, side: int) -> None:
    number, user = of_side(run, side)
    found = one(run, user, 5)
    assert any("not a private user of this run" in note for note in found.notes)
    assert len(found.items) == 5
    begin, end = run.dataset.user_starts[number : number + 2]
    seen = run.dataset.item_ids.gather(run.dataset.item[begin:end].astype(np.int64)).to_list()
    assert not set(seen) & set(found.items)


def test_trained_users_have_no_note(run: Run) -> None:
    values = group_values(run.dataset)
    for local in range(10):
        number = int(run.rows.users[local])
        notes = one(run, run.dataset.user_ids[number], 1).notes
        unknown = [key for key, of_user in values.items() if of_user[number] < 0]
        assert len(notes) == len(unknown)
        assert all(key in note for key, note in zip(unknown, notes, strict=True))


def test_an_unknown_value_has_a_note(tmp_path_factory: pytest.TempPathFactory) -> None:
    run = quick_run(tmp_path_factory, "causal")
    values = group_values(run.dataset)
    number, key = next(
        (int(user), key) for key, of_user in values.items() for user in run.rows.users if of_user[user] < 0
    )
    notes = one(run, run.dataset.user_ids[number], 1).notes
    assert any(key in note and "unknown value" in note for note in notes)


def test_those_who_never_took_part_have_a_note(made: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rising = itertools.count()
    monkeypatch.setattr("fedpa.federation.coordinator.Coordinator._selected", lambda *_: next(rising))
    found = adapt(
        made.foundation, made.dataset, out=tmp_path / "run", participation=0.2, select="auc", **(QUICK | {"rounds": 1})
    )
    assert found.summary["best_round"] == 1
    stored = found.recommender.shard.store.read(np.arange(len(found.rows.users)))
    idle = np.array([not mine.any() for mine in stored])
    assert 0 < idle.sum() < len(idle)
    for local in (*np.flatnonzero(idle)[:5], *np.flatnonzero(~idle)[:5]):
        notes = one(found, made.dataset.user_ids[int(found.rows.users[local])], 1).notes
        assert any("never took part" in note for note in notes) == idle[local]


def test_mistakes_are_named(run: Run) -> None:
    user = of_side(run, 1)[1]
    for k in (0, -3):
        with pytest.raises(ConfigError, match=f"k must be at least 1, found {k}"):
            run.recommend(user, k)
    with pytest.raises(DataError, match="no user 999999"):
        run.recommend(999_999)
    with pytest.raises(DataError, match="no user 'nobody'"):
        run.recommend("nobody")
    assert run.recommend(str(user), 3).items == one(run, user, 3).items  # type: ignore[union-attr]


def brute_force(run: Run, part: Part, k: int, locals_: list[int]) -> dict[str, Any]:
    """Sort the whole catalogue of one user after another."""
    data, rows = run.dataset, run.rows
    values, listed, positives, dropped = [], set(), 0, 0
    for local in locals_:
        mine = rows.user == local
        seen = set(rows.items.numpy()[mine & (rows.part < part)].tolist())
        clicked = set(rows.items.numpy()[mine & (rows.part == part) & (rows.labels.numpy() > 0)].tolist())
        dropped += len(clicked & seen)
        scores = catalogue_logits(run, local, torch.zeros(1, data.n_items, 0, dtype=torch.int64)).tolist()
        best = sorted((i for i in range(data.n_items) if i not in seen), key=lambda i: (-scores[i], i))[:k]
        listed |= set(best)
        clicked -= seen
        if clicked:
            positives += len(clicked)
            hits = [place for place, item in enumerate(best) if item in clicked]
            ideal = sum(1 / math.log2(2 + place) for place in range(min(k, len(clicked))))
            gain = sum(1 / math.log2(2 + place) for place in hits)
            values.append((float(bool(hits)), gain / ideal, len(hits) / len(clicked)))
    means = np.mean(values, axis=0)
    return dict(zip((f"hr@{k}", f"ndcg@{k}", f"recall@{k}"), means, strict=True)) | {
        f"coverage@{k}": len(listed) / data.n_items,
        "users": len(values),
        "positives": positives,
        "seen_positives": dropped,
    }


@pytest.mark.parametrize(("part", "k"), [(Part.TEST, 5), (Part.VAL, 3), (Part.TRAIN, 10)])
def test_ranking_equals_brute_force(timeless: Run, part: Part, k: int) -> None:
    rows = timeless.rows
    clicked = (rows.part == part) & (rows.labels.numpy() > 0)
    expected = brute_force(timeless, part, k, sorted(set(rows.user[clicked].tolist())))
    found = timeless.evaluate(part.name.lower(), top_k=k)["ranking"]
    assert found["catalogue"] == ITEMS
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name


def test_ranking_for_some_users(timeless: Run) -> None:
    everyone = timeless.recommender.ranking("test", 5)
    some = timeless.recommender.ranking("test", 5, 10)
    assert 0 < some["users"] <= 10 < everyone["users"] <= everyone["users_with_clicks"]
    assert some["users_with_clicks"] == everyone["users_with_clicks"]
    assert timeless.recommender.ranking("test", 5, 10) == some
    assert timeless.recommender.ranking("test", 5, 10_000) == everyone


def test_ranking_does_not_depend_on_blocks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run.recommender.ranking("test", 5)
    monkeypatch.setattr("fedpa.recommend._BLOCK_ROWS", 7 * ITEMS)
    assert run.recommender.ranking("test", 5) == pytest.approx(whole, abs=1e-9)


def test_ranking_knows_nothing_of_the_part(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Item statistics come from instants no later than a user's first row of the part."""
    run = quick_run(tmp_path_factory, "causal")
    data, rows = run.dataset, run.rows
    asked: list[Any] = []
    original = type(data).item_counts

    def item_counts(self: Dataset, times: Any) -> Any:
        asked.append(np.asarray(times))
        return original(self, times)

    monkeypatch.setattr(type(data), "item_counts", item_counts)
    recommender = run.recommender
    asked.clear()
    seen: list[torch.Tensor] = []
    scores = recommender._block_scores

    def block_scores(block: Any, item: torch.Tensor, own: torch.Tensor, queries: Any) -> torch.Tensor:
        seen.append(own)
        return scores(block, item, own, queries)

    monkeypatch.setattr(recommender, "_block_scores", block_scores)
    recommender.ranking("test", 5)
    (instants,) = asked
    here = rows.part == Part.TEST
    clicked = np.unique(rows.user[here & (rows.labels.numpy() > 0)])
    first = {int(u): data.time[rows.row[here & (rows.user == u)]].min() for u in clicked}
    assert instants.min() == min(first.values())
    assert len(instants) == 8
    own = torch.cat(seen).numpy()
    for user, context in zip(clicked, own, strict=True):
        row = rows.row[here & (rows.user == user)][0]
        assert data.time[row] == first[int(user)]
        assert context.tolist() == data.context_codes[row, data.n_item_context :].tolist()
