"""Small files in MovieLens' official layouts, of users who like items of one of four kinds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

USERS, ITEMS, OF_USER = 40, 260, 14
KINDS = 4


def write_files(folder: Path, size: str, seed: int = 0) -> Path:
    """Every item is rated; within a user, times differ."""
    rng = np.random.default_rng(seed)
    lines = []
    for user in range(USERS):
        kind = user % KINDS
        own = np.arange(ITEMS)[np.arange(ITEMS) % KINDS == kind]
        chance = 1 / (np.arange(len(own)) + 3)
        liked = rng.choice(own, OF_USER, replace=False, p=chance / chance.sum())
        late = set(liked.tolist())
        rest = [item for item in own[user // KINDS :: USERS // KINDS].tolist() if item not in late]
        for time, item in enumerate([*rest, *rng.permutation(liked).tolist()]):
            lines.append((user + 1, item + 11, int(rng.integers(1, 6)), 978300000 + time))
    order = rng.permutation(len(lines))
    folder.mkdir(parents=True, exist_ok=True)
    if size == "100k":
        (folder / "u.data").write_text("".join("\t".join(map(str, lines[k])) + "\n" for k in order))
        (folder / "u.user").write_text("".join(f"{user + 1}|24|M|writer|85711\n" for user in range(USERS)))
        flags = "|".join(["1"] + ["0"] * 18)
        items = [f"{item + 11}|Film (1995)|01-Jan-1995||x|{flags}\n" for item in range(ITEMS + 5)]
        (folder / "u.item").write_text("".join(items))
    else:
        (folder / "ratings.dat").write_text("".join("::".join(map(str, lines[k])) + "\n" for k in order))
        (folder / "users.dat").write_text("".join(f"{user + 1}::F::1::10::48067\n" for user in range(USERS)))
        items = [f"{item + 11}::Film (1977)::Comedy\n" for item in range(ITEMS + 5)]
        (folder / "movies.dat").write_text("".join(items))
    return folder
