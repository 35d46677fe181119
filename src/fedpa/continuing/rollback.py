"""Go back to an earlier round of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedpa.artifacts import to_json
from fedpa.durable import replace
from fedpa.errors import ArtifactError, ConfigError
from fedpa.federation.coordinator import (
    checkpoints,
    saved_round,
    server_generations,
    write_lines,
    write_shared,
)
from fedpa.federation.device import gather, node_generations
from fedpa.federation.generations import Generations
from fedpa.methods import FederatedMethod
from fedpa.run import Run
from fedpa.unfinished import claimed, finish, new_room, write_config

__all__ = ["kept_rounds", "rollback"]


def kept_rounds(run: Run) -> list[int]:
    """Rounds that a run can go back to, ascending: the last, the one before and the best, or as many as were asked for.

    Whether their bytes are undamaged is seen when one is gone back to.
    """
    if not (checkpoints(run.path) / "server").is_dir():
        return []
    return server_generations(run.path).numbers()


def rollback(run: Run, number: int, *, out: Path | str, overwrite: bool = False) -> Run:
    """Write the run that would have ended with an earlier round as its best.

    The run that is gone back from stays as it is. Averages per round in the new summary are those of all its rounds.

    Parameters
    ----------
    run : Run
    number : int
        One of `kept_rounds`.
    out : path
        Folder to write.
    overwrite : bool
        Replace `out` if it exists.

    Returns
    -------
    Run
        It can be continued like any other.

    Raises
    ------
    ConfigError
        If the method has no rounds.
    ArtifactError
        If the round is not kept or damaged, or `out` exists.
    """
    if not isinstance(run.method, FederatedMethod):
        raise ConfigError(f"{run.path}: method {run.method.name} has no rounds", "adapt anew")
    kept = kept_rounds(run)
    lines = {line["round"]: line for line in run.history}
    if number not in kept or number not in lines:
        held = ", ".join(map(str, kept)) or "none"
        raise ArtifactError(
            f"{run.path}: does not keep round {number}, it keeps {held}",
            "name one of these; fedpa adapt --keep-rounds N keeps more",
        )
    about, saved = saved_round(run.path, number)
    server = run.method.server(run.model.layout)
    server.restore(saved)
    accepted: dict[str, int] = about["accepted"][str(number)]
    earlier = [lines[each] for each in sorted(lines) if each <= number]
    folders = sorted(checkpoints(run.path).glob("node-*"), key=lambda folder: int(_node_of(folder)))
    if not folders or accepted.keys() - {_node_of(folder) for folder in folders}:
        raise ArtifactError(
            f"{run.path}: what devices kept of round {number} is not here, but with their nodes",
            "only runs whose nodes share a disk with the server can be gone back with",
        )
    target = Path(out)
    room = new_room(target, overwrite=overwrite)
    with claimed(room):
        nodes = []
        for folder in folders:
            fresh = node_generations(checkpoints(room) / folder.name)
            nodes.append(_copy(node_generations(folder), accepted.get(_node_of(folder), 0), fresh))
        about |= {"accepted": {str(number): accepted}, "best_round": number, "best": None, "lines": earlier[:-1]}
        _copy(server_generations(run.path), number, server_generations(room), about)
        gather(nodes, room)
        noted = run.config["foundation"]
        write_shared(room, server, None if noted is None else noted["hash"])
        write_lines(room, earlier)
        origin = {"run": str(run.path.resolve()), "best_round": run.summary["best_round"]}
        write_config(room, run.config | {"rolled_back": origin})
        changed = {
            "best_round": number,
            "rounds": len(earlier) - 1,
            "splits": {name: earlier[-1][name] for name in run.summary["splits"]},
            "interrupted": False,
        }
        replace(room / "summary.json", to_json(run.summary | changed).encode())
        finish(room, target, sync=True)
    return Run(target, foundation=run.foundation, dataset=run.dataset)


def _node_of(folder: Path) -> str:
    return folder.name.partition("-")[2]


def _copy(source: Generations, number: int, target: Generations, about: dict[str, Any] | None = None) -> Path:
    """Write a checked generation a second time, with another note if one is given; returns its folder."""
    noted = source.about(number)
    draft = target.draft(number)
    draft.fill(source.path(number))
    return draft.publish(noted if about is None else about)
