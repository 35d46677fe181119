"""Verbs that run many times: settings are chosen, methods compared, published figures reproduced."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedpa.cli.options import FAILED, DatasetArgument, Json, Overwrite, Seed, Set, example, listed, stop, watched
from fedpa.cli.show import show, show_rich
from fedpa.errors import ConfigError

__all__ = ["verbs"]

verbs = typer.Typer()

Methods = Annotated[
    str, typer.Option("--methods", metavar="all|SPEC,...", help="Each a method or method+preset; see `fedpa methods`.")
]
Jobs = Annotated[int | None, typer.Option("--jobs", help="Processes side by side; one per core unless said.")]


@verbs.command(epilog=example("fedpa tune dataset --methods fedpa,fedpa+reference --trials 20 --out tuning"))
def tune(
    dataset: DatasetArgument,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to make, or to go on with.")],
    methods: Methods,
    task: Annotated[str, typer.Option("--task", metavar="click|topk", help="What methods are tuned for.")] = "click",
    trials: Annotated[int, typer.Option("--trials", help="Of every method; the first is its preset.")] = 20,
    ranges: Annotated[
        Path | None, typer.Option("--ranges", metavar="YAML", help="What may be chosen, instead of the package's file.")
    ] = None,
    jobs: Jobs = None,
    set_: Set = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Choose methods' settings on open users who play private ones; needs the extra `tune`; run again to go on."""
    from fedpa.data.dataset import load_dataset
    from fedpa.settings import parse_assignments
    from fedpa.tuning.tune import tune as tuned

    result = tuned(
        load_dataset(dataset),
        out=out,
        methods="all" if methods == "all" else listed(methods),
        task=task,
        trials=trials,
        seed=seed,
        jobs=jobs,
        ranges=ranges,
        settings=parse_assignments(set_ or []),
        progress=watched(),
        say=lambda line: typer.echo(line, err=True),
    )
    show({"tuning": str(out), "settings": str(out / "chosen.yaml"), **result}, as_json)


@verbs.command(
    epilog=example(
        "fedpa compare dataset --methods all --seeds 5 --out comparison",
        "fedpa compare dataset --methods two-counters,fedpa,fedpa+reference --tasks click,topk --out comparison",
    )
)
def compare(
    dataset: DatasetArgument,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to make, or to go on with.")],
    methods: Methods = "all",
    tasks: Annotated[
        str, typer.Option("--tasks", metavar="click,topk", help="What methods are compared on.")
    ] = "click",
    seeds: Annotated[int, typer.Option("--seeds", help="Runs of every method, each with its own foundation.")] = 5,
    jobs: Jobs = None,
    draws: Annotated[int, typer.Option("--draws", help="Draws of users for 95% intervals.")] = 4000,
    tuned: Annotated[
        bool, typer.Option("--tuned/--presets", help="Settings chosen for this data set, or the presets as they are.")
    ] = True,
    chosen: Annotated[
        Path | None, typer.Option("--chosen", metavar="FILE", help="The chosen.yaml that `fedpa tune` wrote.")
    ] = None,
    set_: Set = None,
    pretraining: Annotated[
        list[str] | None,
        typer.Option("--pretrain", metavar="KEY=VALUE", help="A setting of the foundations; may be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare methods on the same users, rows and seeds; run again to go on or to retry what failed."""
    from fedpa.comparison.compare import compare as compared
    from fedpa.data.dataset import load_dataset
    from fedpa.settings import parse_assignments

    if chosen is not None and not tuned:
        raise ConfigError("--chosen and --presets: found both", "give one of them")
    results = compared(
        load_dataset(dataset),
        out=out,
        methods="all" if methods == "all" else listed(methods),
        tasks=listed(tasks),
        seeds=seeds,
        jobs=jobs,
        draws=draws,
        tuned=tuned if chosen is None else chosen,
        settings=parse_assignments(set_ or []),
        pretraining=parse_assignments(pretraining or []),
        progress=watched(),
        say=lambda line: typer.echo(line, err=True),
    )
    if as_json:
        show(results.as_dict(), as_json)
    else:
        from fedpa.comparison.tables import terminal_tables

        for table in terminal_tables(results):
            show_rich(table)
        typer.echo(f"results: {out}")
    if results.failed:
        lines = [f"  {cell}: {reason}" for cell, reason in results.failed.items()]
        stop("\n".join([f"error: {len(lines)} cells failed; the same command tries them again:", *lines]), FAILED)


@verbs.command(
    epilog=example(
        "fedpa reproduce movielens-1m --raw ml-1m --out reproduction",
        "fedpa reproduce movielens-100k --raw ml-100k --protocol both --methods fedmf,pfedrec --rounds 20",
    )
)
def reproduce(
    name: Annotated[str, typer.Argument(metavar="NAME", help="movielens-100k or movielens-1m.")],
    raw: Annotated[Path, typer.Option("--raw", metavar="DIR", help="Folder of the official files.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder to write.")] = None,
    methods: Annotated[
        str, typer.Option("--methods", metavar="NAME,...", help="Some of the four.")
    ] = "fedmf,fedncf,fedrecon,pfedrec",
    protocol: Annotated[
        str,
        typer.Option(
            "--protocol", metavar="after-split|published|both", help="Draw negatives after the split, or as published."
        ),
    ] = "after-split",
    rounds: Annotated[int, typer.Option("--rounds", help="Published are 100.")] = 100,
    seeds: Annotated[int, typer.Option("--seeds", help="Runs of every method.")] = 1,
    negatives: Annotated[
        str, typer.Option("--negatives", metavar="fresh|once", help="Draw training negatives in every round, or once.")
    ] = "fresh",
    draws: Annotated[int, typer.Option("--draws", help="Draws of users for 95% intervals.")] = 1000,
    set_: Set = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Run federated recommenders in PFedRec's protocol and show published values beside theirs."""
    from fedpa.reproduction.movielens import reproduce as reproduced
    from fedpa.reproduction.tables import notes, table
    from fedpa.settings import parse_assignments

    if negatives not in ("fresh", "once"):
        raise ConfigError(f"--negatives: found {negatives!r}, expected fresh or once")
    results = reproduced(
        name,
        raw,
        out=out,
        methods=listed(methods),
        protocol=protocol,  # type: ignore[arg-type]  # checked there
        rounds=rounds,
        seeds=seeds,
        redraw=negatives == "fresh",
        draws=draws,
        settings=parse_assignments(set_ or []),
        overwrite=overwrite,
        progress=watched(),
        say=lambda line: typer.echo(line, err=True),
    )
    if as_json:
        show(results, as_json)
        return
    show_rich(table(results))
    for note in notes(results):
        typer.echo(f"\n{note}")
