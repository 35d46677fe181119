r"""Synthetic interactions in KuaiRand-Pure's file layout, with the true click probability of every row.

User :math:`u` sees item :math:`i` at :math:`\tau \in [0, 1]`, the elapsed share of the period, and clicks
with probability :math:`\sigma(\ell)`:

.. math::
    \ell = a + s_p\, p_i(\tau) + b_u + s_u \langle \theta_u(\tau), v_i \rangle
           + s_g \sum_{f} \langle G_f[x_{uf}, c_u], v_i \rangle

* :math:`v_i \in R^4` is the item latent: embeddings of its tag, music type and upload type and a little
  noise, with mean 0 and variance 1 over shown rows. A tag ``"a,b"`` lies midway between ``"a"`` and ``"b"``.
* :math:`p_i(\tau) = \cos(\omega_p \tau)\, p_i + \sin(\omega_p \tau)\, q_i` is popularity; :math:`p_i` and
  :math:`q_i` are sums of effects of tag, upload type, video type and duration and a little noise.
* :math:`b_u \sim N(0, s_b^2)` is how readily a user clicks.
* :math:`\theta_u(\tau)` is the user's own taste, drawn from :math:`N(0, \mathrm{diag}(w))` with most of the
  weight :math:`w` on two dimensions, between which it turns by :math:`\omega_u \tau`,
  :math:`\omega_u \sim N(0, s_\omega^2)`.
* :math:`G_f[x, c]` is the taste of the users with value :math:`x` of group feature :math:`f`
  (``follow_user_num_range``, ``register_days_range``), drawn like :math:`\theta`. A part of it depends on
  whether the user's ``user_active_degree`` is among `OPEN_DEGREES` (:math:`c`), so open users know the
  taste of private users' groups only in part.

Items are shown by a power law of their rank, independent of the user: no selection bias. Every draw about a
user comes from a generator keyed by (seed, block of users), so equal arguments give equal bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fedpa.artifacts import publish
from fedpa.errors import ConfigError

__all__ = ["OPEN_DEGREES", "synthesise"]

OPEN_DEGREES = ("high_active", "low_active", "middle_active", "single_low_active")
"""Values of ``user_active_degree`` whose users are mostly open under the published division."""

_BLOCK = 4096  # users per generator: part of the definition of the data, not a setting
_DAY = 86_400_000
_END = np.datetime64("2022-05-09")  # local time, UTC+8
_INTERCEPT, _POPULARITY, _BIAS, _USER, _GROUP = -0.55, 0.55, 0.5, 1.05, 0.55  # a, s_p, s_b, s_u, s_g
_TURN_POPULARITY, _TURN_USER = 0.8, 0.4  # radians over the whole period: omega_p, s_omega
_OWN_CLASS = 0.5  # share of the variance of a group's taste that depends on the degree's class
_WEIGHTS = np.array([0.5, 0.35, 0.1, 0.05])  # w: variance of a taste per latent dimension

_Floats: TypeAlias = NDArray[np.float64]
_Ints: TypeAlias = NDArray[np.int64]

_DEGREES = {"full_active": 0.63, "high_active": 0.225, "middle_active": 0.08, "2_14_day_new": 0.03,
            "low_active": 0.02, "single_low_active": 0.008, "30day_retention": 0.003, "day_new": 0.003,
            "UNKNOWN": 0.001}  # fmt: skip
# Range: (probability, smallest count in it); the next range starts where it ends.
_FOLLOW = {"0": (0.02, 0), "(0,10]": (0.1, 1), "(10,50]": (0.19, 11), "(50,100]": (0.15, 51),
           "(100,150]": (0.11, 101), "(150,250]": (0.13, 151), "(250,500]": (0.15, 251),
           "500+": (0.15, 501)}  # fmt: skip
_FANS = {"0": (0.04, 0), "[1,10)": (0.2, 1), "[10,100)": (0.38, 10), "[100,1k)": (0.31, 100),
         "[1k,5k)": (0.06, 1000), "[5k,1w)": (0.01, 5000)}  # fmt: skip
_FRIEND = {"0": (0.12, 0), "[1,5)": (0.2, 1), "[5,30)": (0.28, 5), "[30,60)": (0.1, 30),
           "[60,120)": (0.1, 60), "[120,250)": (0.08, 120), "250+": (0.12, 250)}  # fmt: skip
_REGISTER = {"8-14": (0.01, 8), "15-30": (0.03, 15), "31-60": (0.06, 31), "61-90": (0.07, 61),
             "91-180": (0.1, 91), "181-365": (0.15, 181), "366-730": (0.2, 366),
             "730+": (0.38, 731)}  # fmt: skip
_COUNTS = (("follow_user_num", _FOLLOW, 5001), ("fans_user_num", _FANS, 10_000),
           ("friend_user_num", _FRIEND, 3001), ("register_days", _REGISTER, 3001))  # fmt: skip
_ONEHOT = (2, 7, 50, 1471, 15, 34, 3, 118, 454, 7, 5, 5, 2, 2, 2, 2, 2, 2)  # number of values of onehot_feat*
_MISSING = {4: 0.032} | dict.fromkeys(range(12, 18), 0.026)  # onehot features with missing values

_TAGS = ("39", "3", "9", "6", "20", "7", "12", "2", "15", "17", "1", "5", "11", "28", "43", "68", "4", "8",
         "34", "26", "39,68", "39,43", "3,26", "12,65", "9,28", "65", None)  # fmt: skip
_UPLOADS = {"LongImport": 0.38, "Web": 0.32, "ShortImport": 0.12, "Kmovie": 0.11, "LongPicture": 0.03,
            "UNKNOWN": 0.01, "PictureSet": 0.01, "LongCamera": 0.01, "ShortCamera": 0.01}  # fmt: skip
_MUSIC = {9.0: 0.5, 4.0: 0.28, 8.0: 0.1, 7.0: 0.06, 11.0: 0.03, None: 0.03}
_TYPES = {"NORMAL": 0.94, "AD": 0.05, "UNKNOWN": 0.01}
_TABS = {1: 0.758, 0: 0.089, 4: 0.06, 6: 0.049, 2: 0.03, 8: 0.014}
_HOURS = np.array([3, 2, 1, 1, 1, 1, 2, 3, 4, 4, 5, 5, 6, 5, 5, 5, 5, 6, 6, 6, 6, 6, 7, 6]) / 101.0
_RARE = {"is_like": 0.04, "is_follow": 0.004, "is_comment": 0.006, "is_forward": 0.003, "is_hate": 0.001,
         "is_profile_enter": 0.04, "reads": 0.1}  # fmt: skip
# Columns of the statistic table after the shows, from frequent to rare.
_STATISTICS = """play_cnt play_user_num play_duration complete_play_cnt complete_play_user_num valid_play_cnt
valid_play_user_num long_time_play_cnt long_time_play_user_num short_time_play_cnt short_time_play_user_num
play_progress comment_stay_duration like_cnt like_user_num click_like_cnt double_click_cnt cancel_like_cnt
cancel_like_user_num comment_cnt comment_user_num direct_comment_cnt reply_comment_cnt delete_comment_cnt
delete_comment_user_num comment_like_cnt comment_like_user_num follow_cnt follow_user_num cancel_follow_cnt
cancel_follow_user_num share_cnt share_user_num download_cnt download_user_num report_cnt report_user_num
reduce_similar_cnt reduce_similar_user_num collect_cnt collect_user_num cancel_collect_cnt
cancel_collect_user_num direct_comment_user_num reply_comment_user_num share_all_cnt share_all_user_num
outsite_share_all_cnt"""


@dataclass(frozen=True)
class _World:
    """What users share: items, how often each is shown, and the tastes of groups."""

    videos: pl.DataFrame
    exposure: _Floats  # [items], cumulative probability of being shown
    latent: _Floats  # [items, 4]
    popularity: _Floats  # [items, 2], at the start and a quarter turn later
    duration: _Ints  # [items], milliseconds, 0 where missing
    groups: list[_Floats]  # [values, 2, 4] per group feature: value, class of the degree, dimension


def synthesise(
    out: Path,
    *,
    users: int,
    items: int,
    seed: int = 0,
    rows_per_user: float = 40.0,
    days: int = 14,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, int]:
    """Write a synthetic data set with a known oracle, laid out like KuaiRand-Pure.

    The folder ``data`` in `out` holds the four official tables and ``oracle.parquet`` with ``user_id``,
    ``video_id``, ``time_ms`` and ``probability`` of every row of the log, in the order of the log.

    Parameters
    ----------
    out : Path
        Folder to make; it appears when it is complete.
    users, items : int
        Size, at least 10 each.
    seed : int
        Equal arguments and an equal seed give equal bytes.
    rows_per_user : float
        Mean of the number of rows of a user, 1 to 1000; rows less one are log-normal.
    days : int
        Length of the period, which ends with 2022-05-08; 1 to 17.
    overwrite : bool
        Replace an existing folder.
    progress : callable, optional
        Called with (users done, users) after every block of users.

    Returns
    -------
    dict
        Counts: ``users``, ``items``, ``interactions`` and ``clicks``.

    Raises
    ------
    ConfigError
        If an argument is out of range.
    ArtifactError
        If `out` exists and `overwrite` is false, or cannot be written.
    """
    limits = {"users": (users, 10, 2**31), "items": (items, 10, 2**31), "seed": (seed, 0, 2**63 - 1),
              "rows_per_user": (rows_per_user, 1, 1000), "days": (days, 1, 17)}  # fmt: skip
    for name, (number, low, high) in limits.items():
        if not low <= number <= high:
            message = f"{name} is {number}, expected {low} to {high}"
            raise ConfigError(message, f"set {name} to a number from {low} to {high}")
    world = _world(items, _generator(seed, 2**63))
    shown, clicked = np.zeros(items, np.int64), np.zeros(items, np.int64)
    oracle = []
    with publish(out, overwrite=overwrite) as room:
        folder = room / "data"
        folder.mkdir()
        log_path, user_path = folder / "log_standard_4_22_to_5_08_pure.csv", folder / "user_features_pure.csv"
        with log_path.open("wb") as log_file, user_path.open("wb") as user_file:
            for first in range(0, users, _BLOCK):
                ids = np.arange(first, min(first + _BLOCK, users), dtype=np.int64)
                rng = _generator(seed, first // _BLOCK)
                table, codes = _users(ids, rng)
                log, probability = _rows(world, ids, codes, rows_per_user, days, rng)
                table.write_csv(user_file, include_header=first == 0)
                log.write_csv(log_file, include_header=first == 0)
                oracle.append(log.select("user_id", "video_id", "time_ms").with_columns(probability=probability))
                video, click = log["video_id"].to_numpy(), log["is_click"].to_numpy()
                shown += np.bincount(video, minlength=items)
                clicked += np.bincount(video[click == 1], minlength=items)
                if progress is not None:
                    progress(int(ids[-1]) + 1, users)
        pl.concat(oracle, rechunk=False).write_parquet(folder / "oracle.parquet", row_group_size=1 << 20)
        world.videos.write_csv(folder / "video_features_basic_pure.csv")
        _statistics(shown, clicked, days).write_csv(folder / "video_features_statistic_pure.csv")
    return {"users": users, "items": items, "interactions": int(shown.sum()), "clicks": int(clicked.sum())}


def _generator(seed: int, block: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed, block], np.uint64)))


def _choose(rng: np.random.Generator, weights: Sequence[float] | _Floats, size: int) -> _Ints:
    cumulative = np.cumsum(weights)
    return np.searchsorted(cumulative[:-1] / cumulative[-1], rng.random(size), side="right")


def _standard(values: _Floats, weights: _Floats) -> _Floats:
    """Columns with weighted mean 0 and variance 1."""
    values = values - weights @ values
    return np.asarray(values / np.sqrt(weights @ values**2 + 1e-12))


def _world(items: int, rng: np.random.Generator) -> _World:
    tag_weights = 1 / np.arange(2.0, len(_TAGS) + 2)
    tag_weights[-1] = 0.03
    tag = _choose(rng, tag_weights, items)
    upload = _choose(rng, list(_UPLOADS.values()), items)
    music = _choose(rng, list(_MUSIC.values()), items)
    kind = _choose(rng, list(_TYPES.values()), items)
    exposure: _Floats = np.power(rng.permutation(items) + 10.0, -0.8)
    exposure = exposure / exposure.sum()

    dims = len(_WEIGHTS)
    of_tag = rng.standard_normal((len(_TAGS), dims))
    for row, name in enumerate(_TAGS):
        if name is not None and "," in name:
            parts = [_TAGS.index(part) for part in name.split(",")]
            of_tag[row] = of_tag[parts].mean(axis=0)
    of_music = 0.4 * rng.standard_normal((len(_MUSIC), dims))
    of_upload = 0.3 * rng.standard_normal((len(_UPLOADS), dims))
    noise = 0.2 * rng.standard_normal((items, dims))
    latent = _standard(of_tag[tag] + of_music[music] + of_upload[upload] + noise, exposure)

    log_duration = rng.normal(10.5, 0.9, items) + 0.4 * rng.standard_normal(len(_TAGS))[tag]
    missing = rng.random(items) < 0.03
    effect = np.where(missing, 0.0, log_duration - 10.5)[:, None] * np.array([-0.5, 0.3])
    for codes, size, scale in (tag, len(_TAGS), 0.7), (upload, len(_UPLOADS), 0.5), (kind, len(_TYPES), 0.5):
        effect = effect + scale * rng.standard_normal((size, 2))[codes]
    popularity = _standard(effect + 0.4 * rng.standard_normal((items, 2)), exposure)

    groups = []
    for feature in _FOLLOW, _REGISTER:
        share = np.array([value[0] for value in feature.values()])
        both, own = rng.standard_normal((2, len(share), 2, dims))
        taste = np.sqrt(1 - _OWN_CLASS) * both[:, :1] + np.sqrt(_OWN_CLASS) * own
        taste = _standard(taste.reshape(len(share), -1), share).reshape(taste.shape)
        groups.append(np.sqrt(_WEIGHTS) * taste)

    wide = rng.random(items) < 0.2
    duration = np.exp(np.clip(log_duration, 7.5, 13.0)).astype(np.int64)
    videos = pl.DataFrame(
        {
            "video_id": np.arange(items),
            "author_id": rng.integers(1, max(items, 2), items),
            "video_type": pl.Series(list(_TYPES)).gather(kind),
            "upload_dt": pl.Series(["2022-04-09", "2022-04-10"]).gather(rng.integers(0, 2, items)),
            "upload_type": pl.Series(list(_UPLOADS)).gather(upload),
            "visible_status": np.zeros(items),
            "video_duration": pl.Series(duration.astype(np.float64)).set(pl.Series(missing), None),
            "server_width": np.where(wide, 1280.0, 720.0),
            "server_height": np.where(wide, 720.0, 1280.0),
            "music_id": 4_000_000_000 + rng.integers(0, 5 * 10**9, items),
            "music_type": pl.Series(list(_MUSIC)).gather(music),
            "tag": pl.Series(_TAGS).gather(tag),
        }
    )
    return _World(videos, np.cumsum(exposure), latent, popularity, np.where(missing, 0, duration), groups)


def _users(ids: _Ints, rng: np.random.Generator) -> tuple[pl.DataFrame, list[_Ints]]:
    """Feature table of a block of users, and the codes (follow, register, class of the degree)."""
    n = len(ids)
    degree = _choose(rng, list(_DEGREES.values()), n)
    columns: dict[str, Any] = {
        "user_id": ids,
        "user_active_degree": pl.Series(list(_DEGREES)).gather(degree),
        "is_lowactive_period": np.zeros(n, np.int64),
        "is_live_streamer": np.where(rng.random(n) < 0.22, 1, -124),
        "is_video_author": (rng.random(n) < 0.82).astype(np.int64),
    }
    codes = {}
    for name, feature, end in _COUNTS:
        share, low = zip(*feature.values(), strict=True)
        code = codes[name] = _choose(rng, share, n)
        columns[name] = rng.integers(np.array(low)[code], np.array([*low[1:], end])[code])
        columns[f"{name}_range"] = pl.Series(list(feature)).gather(code)
    for number, size in enumerate(_ONEHOT):
        value = pl.Series((size * rng.random(n) ** 2).astype(np.int64))
        if number in _MISSING:
            value = value.cast(pl.Float64).set(pl.Series(rng.random(n) < _MISSING[number]), None)
        columns[f"onehot_feat{number}"] = value
    is_open = np.array([name in OPEN_DEGREES for name in _DEGREES], np.int64)[degree]
    return pl.DataFrame(columns), [codes["follow_user_num"], codes["register_days"], is_open]


def _rows(
    world: _World, ids: _Ints, codes: list[_Ints], mean: float, days: int, rng: np.random.Generator
) -> tuple[pl.DataFrame, _Floats]:
    """Log of a block of users, by user then time, and the click probability of every row."""
    n = len(ids)
    counts = 1 + np.rint((mean - 1) * np.exp(0.6 * rng.standard_normal(n) - 0.18)).astype(np.int64)
    user = np.repeat(np.arange(n), counts)
    total = len(user)
    # The end of the period stays free for the milliseconds by which equal times of a user are moved apart.
    time = rng.integers(0, days, total) * _DAY + _choose(rng, _HOURS, total) * (_DAY // 24)
    time = np.minimum(time + rng.integers(0, _DAY // 24, total), days * _DAY - 60_000)
    order = np.arange(total)
    time = np.maximum.accumulate(np.sort(user * (days * _DAY) + time) - order) + order - user * (days * _DAY)

    item = np.searchsorted(world.exposure[:-1], rng.random(total), side="right")
    share = time / (days * _DAY)
    follow, register, is_open = codes
    taste = _USER * np.sqrt(_WEIGHTS) * rng.standard_normal((n, len(_WEIGHTS)))
    group = _GROUP * (world.groups[0][follow, is_open] + world.groups[1][register, is_open])
    bias = _INTERCEPT + _BIAS * rng.standard_normal(n)
    turn = (_TURN_USER * rng.standard_normal(n))[user] * share
    latent, own = world.latent[item], taste[user]
    cos, sin = np.cos(turn), np.sin(turn)
    own[:, 0], own[:, 1] = cos * own[:, 0] - sin * own[:, 1], sin * own[:, 0] + cos * own[:, 1]
    popularity, angle = world.popularity[item], _TURN_POPULARITY * share
    logit = bias[user] + np.einsum("rd,rd->r", own + group[user], latent)
    logit += _POPULARITY * (np.cos(angle) * popularity[:, 0] + np.sin(angle) * popularity[:, 1])
    probability = 1 / (1 + np.exp(-logit))
    click = (rng.random(total) < probability).astype(np.int64)

    duration = world.duration[item]
    watched = click * (0.15 + 0.85 * rng.random(total)) * duration
    played = np.where(click == 1, watched.astype(np.int64), rng.integers(0, 3000, total))
    rare = {name: click * (rng.random(total) < rate) for name, rate in _RARE.items()}
    dates = [int(str(day).replace("-", "")) for day in np.arange(_END - days, _END)]
    start = (_END - days).astype("datetime64[ms]").astype(np.int64) - 8 * (_DAY // 24)
    log = pl.DataFrame(
        {
            "user_id": ids[user],
            "video_id": item,
            "date": np.array(dates)[time // _DAY],
            "hourmin": time % _DAY // (_DAY // 24) * 100,
            "time_ms": start + time,
            "is_click": click,
            **{name: rare[name] for name in ("is_like", "is_follow", "is_comment", "is_forward", "is_hate")},
            "long_view": (watched > 0.6 * np.maximum(duration, 1)).astype(np.int64),
            "play_time_ms": played,
            "duration_ms": duration,
            "profile_stay_time": rare["is_profile_enter"] * rng.integers(1000, 60_000, total),
            "comment_stay_time": rare["reads"] * rng.integers(500, 30_000, total),
            "is_profile_enter": rare["is_profile_enter"],
            "is_rand": np.zeros(total, np.int64),
            "tab": np.array(list(_TABS))[_choose(rng, list(_TABS.values()), total)],
        }
    )
    return log, probability


def _statistics(shown: _Ints, clicked: _Ints, days: int) -> pl.DataFrame:
    """Counts per video and day over the whole log; they know its future, as the official table does."""
    columns: dict[str, Any] = {"video_id": np.arange(len(shown)), "counts": np.full(len(shown), days)}
    columns |= dict.fromkeys(("show_cnt", "show_user_num"), shown / days)
    columns |= {name: clicked / days * 0.85**rank for rank, name in enumerate(_STATISTICS.split())}
    return pl.DataFrame(columns)
