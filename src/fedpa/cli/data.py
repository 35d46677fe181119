"""Verbs that make, fetch, describe and check data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fedpa.cli.options import STYLE, DatasetArgument, Json, Overwrite, Seed, example, listed, watched
from fedpa.cli.show import show

__all__ = ["data_verbs", "verbs"]

data_verbs = typer.Typer(**STYLE)
verbs = typer.Typer()


@data_verbs.command("synth", epilog=example("fedpa data synth raw --users 2500 --items 1000"))
def synth(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make.")],
    users: Annotated[int, typer.Option("--users", help="Number of users.")] = 2500,
    items: Annotated[int, typer.Option("--items", help="Number of items.")] = 1000,
    rows_per_user: Annotated[float, typer.Option("--rows-per-user", help="Mean number of rows of a user.")] = 40.0,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Make synthetic data of known click probabilities, laid out like KuaiRand-Pure."""
    from fedpa.data.synthetic import synthesise

    counts = synthesise(out, users=users, items=items, seed=seed, rows_per_user=rows_per_user, overwrite=overwrite)
    show({"raw": str(out), **counts}, as_json)


@data_verbs.command("download", epilog=example("fedpa data download kuairand-pure raw"))
def download(
    name: Annotated[str, typer.Argument(metavar="NAME", help="kuairand-pure, kuairand-1k or kuairand-27k.")],
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make.")],
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Download a public data set; run again to resume."""
    from fedpa.data import download as downloads

    path = downloads.download(name, out, overwrite=overwrite, progress=watched())
    show({"raw": str(path)}, as_json)


@data_verbs.command("describe", epilog=example("fedpa data describe dataset"))
def describe(dataset: DatasetArgument, as_json: Json = False) -> None:
    """Say what a data set holds: counts, parts, features, groups and what to beware of."""
    from fedpa.data import dataset as datasets

    show(datasets.describe(datasets.load_dataset(dataset)), as_json)


@data_verbs.command("check", epilog=example("fedpa data check dataset"))
def check(dataset: DatasetArgument, as_json: Json = False) -> None:
    """Look for leaks, by which test rows are known beforehand; exits with 1 if there is one."""
    from fedpa.data.dataset import load_dataset
    from fedpa.evaluation.leaks import check_leaks

    found = check_leaks(load_dataset(dataset))
    if as_json:
        show({"dataset": str(dataset), "leaks": [leak._asdict() for leak in found]}, as_json)
    else:
        for leak in found:
            typer.echo(str(leak))
        typer.echo(f"{dataset}: {len(found) or 'no'} finding{'' if len(found) == 1 else 's'}")
    if any(leak.level == "leak" for leak in found):
        raise typer.Exit(1)


@data_verbs.command(
    "shard",
    epilog=example(
        "fedpa data shard dataset --shards 3 --out shards", "fedpa data shard today --like shards --out shards-of-today"
    ),
)
def shard(
    dataset: DatasetArgument,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write.")],
    shards: Annotated[int | None, typer.Option("--shards", help="Number of nodes.")] = None,
    like: Annotated[
        Path | None,
        typer.Option("--like", metavar="SHARDS", help="Instead: users stay where they are in an earlier division."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Cut a data set into a folder for the server and one for each node."""
    from fedpa.data import shard as sharding
    from fedpa.data.dataset import load_dataset

    folders = sharding.shard(load_dataset(dataset), out, shards=shards, like=like, overwrite=overwrite)
    counts = {name: load_dataset(path).manifest["counts"] for name, path in folders.items()}
    users = {name: found["sides"]["open" if name == sharding.SERVER else "private"] for name, found in counts.items()}
    rows = {name: found["rows"] for name, found in counts.items()}
    show({"shards": str(out), "users": users, "rows": rows}, as_json)


@verbs.command(
    epilog=example(
        "fedpa prepare kuairand-pure --raw raw --out dataset --min-rows 5",
        "fedpa prepare tables --raw mine --schema mine/schema.yaml --out dataset",
        "fedpa prepare tables --raw mine --like dataset --cuts 2026-05-07,2026-05-08 --until 2026-05-08 --out today",
    )
)
def prepare(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A public data set, or `tables` for your own.")],
    raw: Annotated[Path, typer.Option("--raw", metavar="DIR", help="Folder of the raw files.")],
    out: Annotated[Path, typer.Option("--out", metavar="DATASET", help="Folder to write.")],
    schema: Annotated[
        Path | None, typer.Option("--schema", metavar="YAML", help="What your tables' columns are.")
    ] = None,
    features: Annotated[
        Literal["causal", "reference"],
        typer.Option("--features", help="Only what was known before a row, or the published encoding, which leaks."),
    ] = "causal",
    min_rows: Annotated[int, typer.Option("--min-rows", help="Drop users with fewer rows.")] = 1,
    division: Annotated[
        str,
        typer.Option("--division", metavar="FILE|feature|random", help="Which users are open and which private."),
    ] = "feature",
    split: Annotated[
        Literal["per-user", "global-time"], typer.Option("--split", help="Cut each user's rows in time, or all rows.")
    ] = "per-user",
    cold_users: Annotated[bool, typer.Option("--cold-users", help="Keep a tenth of the private users cold.")] = False,
    groups: Annotated[
        str | None, typer.Option("--groups", metavar="A,B", help="User columns whose values make groups.")
    ] = None,
    label: Annotated[str | None, typer.Option("--label", help="What models predict.")] = None,
    row_features: Annotated[
        str,
        typer.Option(
            "--row-features",
            metavar="A,B",
            help="What is known of a row before it is scored: tab,hour of KuaiRand, or columns that your schema lists.",
        ),
    ] = "",
    seed: Seed = 0,
    like: Annotated[
        Path | None,
        typer.Option(
            "--like",
            metavar="DATASET",
            help="Today's data for an earlier data set's foundation: its encoders, groups and sides of known users.",
        ),
    ] = None,
    cuts: Annotated[
        str | None,
        typer.Option("--cuts", metavar="TIME,TIME", help="Train before the first instant, test from the second on."),
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="TIME", help="Leave out rows of this instant and later.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Turn raw tables into a data set: open and private users, splits, features."""
    from fedpa.data.dataset import describe as described
    from fedpa.data.dataset import load_dataset
    from fedpa.data.prepare import prepare as prepared
    from fedpa.data.sources import open_source
    from fedpa.data.until import instant, instants

    dataset = prepared(
        open_source(source, raw, schema=schema),
        out,
        features=features,
        min_rows=min_rows,
        division=Path(division) if division not in ("feature", "random") else division,  # type: ignore[arg-type]
        split=split,
        cold_users=cold_users,
        groups=None if groups is None else [name for name in groups.split(",") if name],
        label=label,
        row_features=listed(row_features),
        seed=seed,
        like=None if like is None else load_dataset(like),
        cuts=None if cuts is None else instants(cuts),
        until=None if until is None else instant(until),
        overwrite=overwrite,
    )
    show({"dataset": str(out), **described(dataset)}, as_json)
