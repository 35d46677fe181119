"""The command line: one function per verb, each a call of the package and a way to show what it returned."""

from __future__ import annotations

import errno
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from fedpa.errors import ConfigError, FedpaError

if TYPE_CHECKING:
    from rich.table import Table

    from fedpa.data.dataset import Dataset
    from fedpa.models.foundation import Foundation
    from fedpa.run import Run

__all__ = ["app", "main"]

_FAILED, _MISTAKE, _INTERRUPTED = 1, 2, 130


class _Verbs(TyperGroup):
    """Turns what a user can mend into one message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run a verb."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except FedpaError as error:
            _stop(f"error: {error}")
        except KeyboardInterrupt:
            _stop("interrupted: nothing was left half-written", _INTERRUPTED)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            hint = "\n  To fix it: free some space" if error.errno == errno.ENOSPC else ""
            _stop(f"error: {place}{error.strerror or error}{hint}")
        return result


def _stop(line: str, code: int = _MISTAKE) -> None:
    typer.echo(line, err=True)
    raise typer.Exit(code) from None


_STYLE: dict[str, Any] = {
    "cls": _Verbs,
    "no_args_is_help": True,
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, **_STYLE)
data_app = typer.Typer(**_STYLE)
app.add_typer(data_app, name="data", help="Make, fetch and describe data.")


def _example(*lines: str) -> str:
    """An epilog whose lines stay as they are."""
    return "\b\n" + "\n".join(("Example:", *(f"  {line}" for line in lines)))


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Seed = Annotated[int, typer.Option("--seed", help="Of every draw: equal seeds give equal results.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it exists.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting; may be repeated.")]
Device = Annotated[str, typer.Option("--device", help="For instance cpu or cuda.")]
DatasetArgument = Annotated[Path, typer.Argument(metavar="DATASET", help="Folder that `fedpa prepare` wrote.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `fedpa adapt` wrote.")]
MovedDataset = Annotated[
    Path | None, typer.Option("--dataset", metavar="DATASET", help="Where the run's data set is, if it was moved.")
]
MovedFoundation = Annotated[
    Path | None,
    typer.Option("--foundation", metavar="FOUNDATION", help="Where the run's foundation is, if it was moved."),
]


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"fedpa {version('fedpa')}")
        raise typer.Exit


@app.callback()
def _global(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Adapt a frozen recommender to private users whose interactions stay with them."""


@data_app.command("synth", epilog=_example("fedpa data synth raw --users 2500 --items 1000"))
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
    _show({"raw": str(out), **counts}, as_json)


@data_app.command("download", epilog=_example("fedpa data download kuairand-pure raw"))
def download(
    name: Annotated[str, typer.Argument(metavar="NAME", help="kuairand-pure, kuairand-1k or kuairand-27k.")],
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make.")],
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Download a public data set; run again to resume."""
    from fedpa.data import download as downloads

    path = downloads.download(name, out, overwrite=overwrite, progress=_watched())
    _show({"raw": str(path)}, as_json)


@data_app.command("describe", epilog=_example("fedpa data describe dataset"))
def describe(dataset: DatasetArgument, as_json: Json = False) -> None:
    """Say what a data set holds: counts, parts, features, groups and what to beware of."""
    from fedpa.data import dataset as datasets

    _show(datasets.describe(datasets.load_dataset(dataset)), as_json)


@data_app.command("check", epilog=_example("fedpa data check dataset"))
def check(dataset: DatasetArgument, as_json: Json = False) -> None:
    """Look for leaks, by which test rows are known beforehand; exits with 1 if there is one."""
    from fedpa.data.dataset import load_dataset
    from fedpa.evaluation.leaks import check_leaks

    found = check_leaks(load_dataset(dataset))
    if as_json:
        _show({"dataset": str(dataset), "leaks": [leak._asdict() for leak in found]}, as_json)
    else:
        for leak in found:
            typer.echo(str(leak))
        typer.echo(f"{dataset}: {len(found) or 'no'} finding{'' if len(found) == 1 else 's'}")
    if any(leak.level == "leak" for leak in found):
        raise typer.Exit(1)


@app.command(
    epilog=_example(
        "fedpa prepare kuairand-pure --raw raw --out dataset --min-rows 5",
        "fedpa prepare tables --raw mine --schema mine/schema.yaml --out dataset",
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
    seed: Seed = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Turn raw tables into a data set: open and private users, splits, features."""
    from fedpa.data.dataset import describe as described
    from fedpa.data.prepare import prepare as prepared
    from fedpa.data.sources import open_source

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
        seed=seed,
        overwrite=overwrite,
    )
    _show({"dataset": str(out), **described(dataset)}, as_json)


@app.command(epilog=_example("fedpa pretrain dataset --out foundation --set epochs=20"))
def pretrain(
    dataset: DatasetArgument,
    out: Annotated[Path, typer.Option("--out", metavar="FOUNDATION", help="Folder to write.")],
    set_: Set = None,
    device: Device = "cpu",
    seed: Seed = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a foundation on the open users of a data set."""
    from fedpa.data.dataset import load_dataset
    from fedpa.models.pretrain import pretrain as pretrained

    settings = _settings(pretrained, set_)
    foundation = pretrained(
        load_dataset(dataset),
        out=out,
        seed=seed,
        device=device,
        overwrite=overwrite,
        progress=_watched(),
        **settings,
    )
    _show_foundation(foundation, out, as_json)


@app.command(
    epilog=_example(
        "fedpa adapt foundation dataset --out run --set rounds=20",
        "fedpa adapt - dataset --out counters --method two-counters",
        "fedpa adapt foundation dataset --out mine --method my_file.py:MyMethod",
    )
)
def adapt(
    foundation: Annotated[
        str, typer.Argument(metavar="FOUNDATION", help="Folder that `fedpa pretrain` wrote; - for none.")
    ],
    dataset: DatasetArgument,
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="Folder to write.")],
    method: Annotated[str, typer.Option("--method", help="See `fedpa methods`; or my_file.py:MyMethod.")] = "fedpa",
    preset: Annotated[str, typer.Option("--preset", help="Named settings of the method.")] = "default",
    set_: Set = None,
    device: Device = "cpu",
    seed: Seed = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Adapt a foundation to the private users of a data set, round by round; Ctrl-C keeps the best round so far."""
    from fedpa.adaptation import adapt as adapted
    from fedpa.data.dataset import load_dataset
    from fedpa.models.foundation import load_foundation

    settings = _settings(adapted, set_)
    run = adapted(
        None if foundation == "-" else load_foundation(foundation),
        load_dataset(dataset),
        out=out,
        method=method,
        preset=preset,
        seed=seed,
        device=device,
        overwrite=overwrite,
        progress=_watched(),
        foundation_path=None if foundation == "-" else foundation,
        **settings,
    )
    _show({"run": str(out), **run.summary}, as_json)
    if run.summary["interrupted"]:
        _stop(f"interrupted: {out} holds the best round so far", _INTERRUPTED)


@app.command(
    epilog=_example("fedpa evaluate run --bootstrap 1000", "fedpa evaluate run --top-k 10 --ranking-users 2000")
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
    opened = _open_run(run, dataset, foundation)
    report = opened.evaluate(part, bootstrap=bootstrap, top_k=top_k, ranking_users=ranking_users)
    yardsticks = report if part == "cold" else opened.yardsticks(part, bootstrap=bootstrap)
    result = {"run": str(run), "part": part, "metrics": report, "yardsticks": yardsticks}
    if predictions:
        result["predictions"] = str(_write_predictions(opened))
    if as_json:
        _show(result, as_json)
        return
    _show_table(yardsticks, f"{run}, {part} rows of private users")
    if "ranking" in report:
        _show(report["ranking"], as_json)
    if predictions:
        typer.echo(f"every score: {result['predictions']}")


@app.command(epilog=_example("fedpa recommend run --user 42 -k 5"))
def recommend(
    run: RunArgument,
    user: Annotated[str, typer.Option("--user", metavar="ID", help="As in the raw data.")],
    k: Annotated[int, typer.Option("-k", help="Number of items.")] = 10,
    dataset: MovedDataset = None,
    foundation: MovedFoundation = None,
    as_json: Json = False,
) -> None:
    """List the best items that a user has not seen, with the weight of every branch."""
    found = _open_run(run, dataset, foundation).recommender.recommend(user, k)
    if as_json:
        _show(found.as_dict(), as_json)
        return
    _print(_ranked(found.items, {"click": found.scores, **found.gates}))
    for note in found.notes:
        typer.echo(f"note: {note}", err=True)


@app.command(epilog=_example("fedpa forget run --user 42"))
def forget(
    run: RunArgument,
    user: Annotated[str, typer.Option("--user", metavar="ID", help="As in the raw data.")],
    dataset: MovedDataset = None,
    foundation: MovedFoundation = None,
    as_json: Json = False,
) -> None:
    """Erase a user's personal parameters from a run, and say what that cannot undo."""
    _show(_open_run(run, dataset, foundation).forget(user), as_json)


@app.command(
    "import-reference", epilog=_example("fedpa import-reference model.pth --dataset reference --out foundation")
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
    _show_foundation(foundation, out, as_json)


@app.command(epilog=_example("fedpa methods"))
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
    _show(found, as_json)


Methods = Annotated[
    str, typer.Option("--methods", metavar="all|SPEC,...", help="Each a method or method+preset; see `fedpa methods`.")
]
Jobs = Annotated[int | None, typer.Option("--jobs", help="Processes side by side; one per core unless said.")]


@app.command(
    epilog=_example(
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
        methods="all" if methods == "all" else _listed(methods),
        tasks=_listed(tasks),
        seeds=seeds,
        jobs=jobs,
        draws=draws,
        tuned=tuned if chosen is None else chosen,
        settings=parse_assignments(set_ or []),
        progress=_watched(),
        say=lambda line: typer.echo(line, err=True),
    )
    if as_json:
        _show(results.as_dict(), as_json)
    else:
        from fedpa.comparison.tables import terminal_tables

        for table in terminal_tables(results):
            _print(table)
        typer.echo(f"results: {out}")
    if results.failed:
        lines = [f"  {cell}: {reason}" for cell, reason in results.failed.items()]
        _stop("\n".join([f"error: {len(lines)} cells failed; the same command tries them again:", *lines]), _FAILED)


@app.command(epilog=_example("fedpa tune dataset --methods fedpa,fedpa+reference --trials 20 --out tuning"))
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
        methods="all" if methods == "all" else _listed(methods),
        task=task,
        trials=trials,
        seed=seed,
        jobs=jobs,
        ranges=ranges,
        settings=parse_assignments(set_ or []),
        progress=_watched(),
        say=lambda line: typer.echo(line, err=True),
    )
    _show({"tuning": str(out), "settings": str(out / "chosen.yaml"), **result}, as_json)


@app.command(
    epilog=_example(
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
        methods=_listed(methods),
        protocol=protocol,  # type: ignore[arg-type]  # checked there
        rounds=rounds,
        seeds=seeds,
        redraw=negatives == "fresh",
        draws=draws,
        settings=parse_assignments(set_ or []),
        overwrite=overwrite,
        progress=_watched(),
        say=lambda line: typer.echo(line, err=True),
    )
    if as_json:
        _show(results, as_json)
        return
    _print(table(results))
    for note in notes(results):
        typer.echo(f"\n{note}")


@app.command(epilog=_example("fedpa demo", "fedpa demo --dir elsewhere --users 1000"))
def demo(
    out: Annotated[Path, typer.Option("--dir", help="Folder to write; an earlier demo is overwritten.")] = Path(
        "fedpa-demo"
    ),
    users: Annotated[int, typer.Option("--users", help="Number of synthetic users.")] = 2500,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Go the whole path on synthetic users, from raw tables to recommendations."""
    from fedpa.demo import demo as demonstrated

    result = demonstrated(out, users=users, seed=seed, progress=lambda line: typer.echo(line, err=True))
    if as_json:
        _show(result, as_json)
        return
    recommended = result["recommendation"]
    typer.echo(f"for user {recommended['user']}: items {', '.join(map(str, recommended['items']))}")
    _show_table(result["yardsticks"], "test rows of private users")
    typer.echo(f"uploaded per user and round: {result['bytes_up_per_user_round']:,.0f} bytes")


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _open_run(path: Path, dataset: Path | None, foundation: Path | None) -> Run:
    from fedpa.data.dataset import load_dataset
    from fedpa.models.foundation import load_foundation
    from fedpa.run import load_run

    opened: Dataset | None = None if dataset is None else load_dataset(dataset)
    loaded: Foundation | None = None if foundation is None else load_foundation(foundation)
    return load_run(path, foundation=loaded, dataset=opened)


def _settings(function: Callable[..., object], assignments: list[str] | None) -> dict[str, Any]:
    """The settings of ``--set``; what has an option of its own is refused."""
    from fedpa.settings import parse_assignments

    settings = parse_assignments(assignments or [])
    for key in inspect.signature(function).parameters.keys() & settings.keys():
        raise ConfigError(f"--set {key}: is not a setting of the method", f"use the option --{key}, if there is one")
    return settings


def _write_predictions(run: Run) -> Path:
    from fedpa.artifacts import replace_file

    path = run.path / "predictions.parquet"
    with replace_file(path) as fresh:
        run.predictions().write_parquet(fresh)
    return path


def _show_foundation(foundation: Foundation, out: Path, as_json: bool) -> None:
    _show({"foundation": str(out), "hash": foundation.hash, **foundation.facts}, as_json)


def _show(content: Mapping[str, Any], as_json: bool) -> None:
    """Print a result, as JSON or as indented text."""
    if as_json:
        typer.echo(json.dumps(content, allow_nan=False))
        return
    import yaml

    plain = json.loads(json.dumps(content))
    typer.echo(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120).rstrip())


def _show_table(reports: Mapping[str, Mapping[str, Any]], title: str) -> None:
    from fedpa.evaluation.report import comparison_table

    _print(comparison_table([{"name": name, **report} for name, report in reports.items()], title))


def _ranked(items: list[Any], columns: Mapping[str, list[float]]) -> Table:
    from rich.table import Table

    table = Table()
    for name in ("rank", "item", *columns):
        table.add_column(name, justify="right")
    for place, item in enumerate(items):
        table.add_row(str(place + 1), str(item), *(f"{values[place]:.4f}" for values in columns.values()))
    return table


def _print(table: Table) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = 160
    console.print(table)


def _watched() -> bool:
    """Whether somebody sees progress bars."""
    return sys.stderr.isatty()


def main() -> None:
    """Run the command line."""
    app()
