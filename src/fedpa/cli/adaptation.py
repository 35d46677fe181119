"""Verbs from a foundation to recommendations."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedpa.cli.continuing import continued
from fedpa.cli.options import (
    INTERRUPTED,
    Device,
    Json,
    Log,
    MetricsFile,
    MetricsPort,
    MovedDataset,
    MovedFoundation,
    Overwrite,
    RunArgument,
    Seed,
    Set,
    example,
    open_run,
    options_given,
    settings_of,
    start_log,
    stop,
    watched,
)
from fedpa.cli.show import ranked, show, show_foundation, show_rich, show_table
from fedpa.errors import ConfigError

if TYPE_CHECKING:
    from fedpa.run import Run

__all__ = ["verbs"]

verbs = typer.Typer()
_WITH_RESUME = {"resume", "metrics_file", "metrics_port", "log", "as_json"}


@verbs.command(
    epilog=example(
        "fedpa adapt foundation dataset --out run --set rounds=20",
        "fedpa adapt my_file.py:build dataset --out run",
        "fedpa adapt - dataset --out counters --method two-counters",
        "fedpa adapt foundation dataset --out run --driver ray --shards 2",
        "fedpa adapt --resume run",
        "fedpa adapt --continue run today --out run-of-today --set rounds=3",
        "fedpa adapt foundation dataset --out mine --method my_file.py:MyMethod",
    )
)
def adapt(
    context: typer.Context,
    foundation: Annotated[
        str | None,
        typer.Argument(
            metavar="FOUNDATION", help="Folder that `fedpa pretrain` wrote, or my_file.py:build; - for none."
        ),
    ] = None,
    dataset: Annotated[
        Path | None, typer.Argument(metavar="DATASET", help="Folder that `fedpa prepare` wrote.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="RUN", help="Folder to write.")] = None,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="RUN", help="Go on with a run that was stopped; nothing else is given."),
    ] = None,
    continue_: Annotated[
        Path | None,
        typer.Option(
            "--continue", metavar="RUN", help="Go on from a run's best round: fedpa adapt --continue RUN DATASET."
        ),
    ] = None,
    migrate: Annotated[
        bool, typer.Option("--migrate", help="With --continue RUN FOUNDATION DATASET: take over what still fits.")
    ] = False,
    method: Annotated[str, typer.Option("--method", help="See `fedpa methods`; or my_file.py:MyMethod.")] = "fedpa",
    preset: Annotated[str, typer.Option("--preset", help="Named settings of the method.")] = "default",
    set_: Set = None,
    device: Device = "cpu",
    seed: Seed = 0,
    driver: Annotated[str, typer.Option("--driver", help="Where shards are: local or ray (extra `ray`).")] = "local",
    shards: Annotated[int, typer.Option("--shards", help="Into how many shards users are divided.")] = 1,
    address: Annotated[
        str | None, typer.Option("--address", help="Of a Ray cluster that is there already; none: this machine.")
    ] = None,
    deadline: Annotated[
        float | None, typer.Option("--deadline", help="Seconds after which a round goes on without a late shard.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", help="Threads that each shard on Ray computes on; by default one.")
    ] = None,
    keep_rounds: Annotated[
        int, typer.Option("--keep-rounds", help="How many last rounds can be gone back to, beside the best.")
    ] = 2,
    metrics_file: MetricsFile = None,
    metrics_port: MetricsPort = None,
    log: Log = "text",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Adapt a foundation to the private users of a data set, round by round; Ctrl-C keeps the best round so far."""
    from fedpa.adaptation import adapt as adapted
    from fedpa.adaptation import resume as resumed
    from fedpa.data.dataset import load_dataset
    from fedpa.models.wrap.source import open_foundation

    start_log(log)
    if resume is not None:
        if options_given(context) - _WITH_RESUME:
            raise ConfigError("--resume: the run knows all else", "give nothing but --resume RUN")
        _show_run(
            resumed(resume, progress=watched(), metrics_file=metrics_file, metrics_port=metrics_port), resume, as_json
        )
        return
    if continue_ is not None:
        run = continued(context, continue_, foundation, dataset, out, migrate=migrate, assignments=set_)
        _show_run(run, run.path, as_json)
        return
    if migrate:
        raise ConfigError("--migrate: is for a run that goes on", "add --continue RUN")
    if foundation is None or dataset is None or out is None:
        raise ConfigError("expected FOUNDATION, DATASET and --out RUN, or --resume RUN", "see fedpa adapt --help")
    settings = settings_of(adapted, set_)
    run = adapted(
        None if foundation == "-" else open_foundation(foundation),
        load_dataset(dataset),
        out=out,
        method=method,
        preset=preset,
        seed=seed,
        device=device,
        overwrite=overwrite,
        progress=watched(),
        foundation_path=None if foundation == "-" else foundation,
        driver=driver,
        shards=shards,
        address=address,
        deadline=deadline,
        threads=threads,
        keep_rounds=keep_rounds,
        metrics_file=metrics_file,
        metrics_port=metrics_port,
        **settings,
    )
    _show_run(run, out, as_json)


@verbs.command(
    epilog=example("fedpa evaluate run --bootstrap 1000", "fedpa evaluate run --top-k 10 --ranking-users 2000")
)
def evaluate(
    run: RunArgument,
    part: Annotated[str, typer.Option("--part", help="train, val, test, unbiased or cold.")] = "test",
    bootstrap: Annotated[int, typer.Option("--bootstrap", help="Draws of users for 95% intervals; 0: none.")] = 0,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Also rank the whole catalogue.")] = None,
    ranking_users: Annotated[int | None, typer.Option("--ranking-users", help="Rank for so many users only.")] = None,
    predictions: Annotated[
        bool, typer.Option("--predictions/--no-predictions", help="Write every score to RUN/predictions.parquet.")
    ] = True,
    dataset: MovedDataset = None,
    foundation: MovedFoundation = None,
    as_json: Json = False,
) -> None:
    """Compare a run with the two counters, the frozen foundation and, for synthetic data, the oracle."""
    opened = open_run(run, dataset, foundation)
    report = opened.evaluate(part, bootstrap=bootstrap, top_k=top_k, ranking_users=ranking_users)
    yardsticks = report if part == "cold" else opened.yardsticks(part, bootstrap=bootstrap)
    result = {"run": str(run), "part": part, "metrics": report, "yardsticks": yardsticks}
    if predictions:
        result["predictions"] = str(_write_predictions(opened))
    if as_json:
        show(result, as_json)
        return
    show_table(yardsticks, f"{run}, {part} rows of private users")
    if "ranking" in report:
        show(report["ranking"], as_json)
    if predictions:
        typer.echo(f"every score: {result['predictions']}")


@verbs.command(epilog=example("fedpa recommend run --user 42 -k 5"))
def recommend(
    run: RunArgument,
    user: Annotated[str, typer.Option("--user", metavar="ID", help="As in the raw data.")],
    k: Annotated[int, typer.Option("-k", help="Number of items.")] = 10,
    dataset: MovedDataset = None,
    foundation: MovedFoundation = None,
    as_json: Json = False,
) -> None:
    """List the best items that a user has not seen, with the weight of every branch."""
    found = open_run(run, dataset, foundation).recommender.recommend(user, k)
    if as_json:
        show(found.as_dict(), as_json)
        return
    show_rich(ranked(found.items, {"click": found.scores, **found.gates}))
    for note in found.notes:
        typer.echo(f"note: {note}", err=True)


@verbs.command(
    epilog=example(
        "fedpa export run --all-users --only-if-better --out devices", "fedpa export run --user 42 --rows --out device"
    )
)
def export(
    run: RunArgument,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write.")],
    user: Annotated[
        list[str] | None, typer.Option("--user", metavar="ID", help="As in the raw data; may be repeated.")
    ] = None,
    all_users: Annotated[bool, typer.Option("--all-users", help="Every private user.")] = False,
    only_if_better: Annotated[
        bool, typer.Option("--only-if-better", help="Leave out adapters that lose on their user's validation rows.")
    ] = False,
    rows: Annotated[bool, typer.Option("--rows", help="Also the users' own rows, to try the examples.")] = False,
    dataset: MovedDataset = None,
    foundation: MovedFoundation = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a run for devices: the foundation as ONNX once, and a small adapter per user; needs the extra `export`."""
    from fedpa.exporting.export import export as exported

    if all_users == bool(user):
        raise ConfigError("--user and --all-users: expected one of them", "name users, or all of them")
    result = exported(
        open_run(run, dataset, foundation),
        out,
        users=user,
        only_if_better=only_if_better,
        rows=rows,
        overwrite=overwrite,
    )
    show({"export": str(out), **result}, as_json)


@verbs.command(epilog=example("fedpa forget run --user 42"))
def forget(
    run: RunArgument,
    user: Annotated[str, typer.Option("--user", metavar="ID", help="As in the raw data.")],
    dataset: MovedDataset = None,
    foundation: MovedFoundation = None,
    as_json: Json = False,
) -> None:
    """Erase a user's personal parameters from a run, and say what that cannot undo."""
    show(open_run(run, dataset, foundation).forget(user), as_json)


@verbs.command(
    "import-reference", epilog=example("fedpa import-reference model.pth --dataset reference --out foundation")
)
def import_reference(
    file: Annotated[Path, typer.Argument(metavar="FILE.pth", help="Checkpoint of the published code.")],
    dataset: Annotated[Path, typer.Option("--dataset", metavar="DATASET", help="Prepared with reference features.")],
    out: Annotated[Path, typer.Option("--out", metavar="FOUNDATION", help="Folder to write.")],
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Make a foundation of a published checkpoint; no code of the file is run."""
    from fedpa.data.dataset import load_dataset
    from fedpa.models.published import import_reference as imported

    foundation = imported(file, load_dataset(dataset))
    foundation.save(out, overwrite=overwrite)
    show_foundation(foundation, out, as_json)


@verbs.command(epilog=example("fedpa methods"))
def methods(as_json: Json = False) -> None:
    """List the methods and their presets."""
    from fedpa.methods import find_method, method_names

    found = {
        name: {
            "about": inspect.getdoc(method := find_method(name)).partition("\n")[0],  # type: ignore[union-attr]
            "presets": sorted(method.presets),
            "needs_foundation": method.needs_foundation,
        }
        for name in method_names()
    }
    show(found, as_json)


def _show_run(run: Run, out: Path, as_json: bool) -> None:
    show({"run": str(out), **run.summary}, as_json)
    if run.summary["interrupted"]:
        stop(f"interrupted: {out} holds the best round so far", INTERRUPTED)


def _write_predictions(run: Run) -> Path:
    from fedpa.artifacts import replace_file

    path = run.path / "predictions.parquet"
    with replace_file(path) as fresh:
        run.predictions().write_parquet(fresh)
    return path
