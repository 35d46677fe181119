"""What the verbs share: options, how their values are read, and how a verb ends."""

from __future__ import annotations

import errno
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from fedpa.errors import ConfigError, FedpaError

if TYPE_CHECKING:
    from fedpa.data.dataset import Dataset
    from fedpa.models.foundation import Foundation
    from fedpa.run import Run

__all__ = [
    "FAILED",
    "INTERRUPTED",
    "STYLE",
    "DatasetArgument",
    "Device",
    "Json",
    "Log",
    "MetricsFile",
    "MetricsPort",
    "MovedDataset",
    "MovedFoundation",
    "Overwrite",
    "RunArgument",
    "Seed",
    "Set",
    "example",
    "listed",
    "open_run",
    "options_given",
    "settings_of",
    "start_log",
    "stop",
    "watched",
]

FAILED, MISTAKE, INTERRUPTED = 1, 2, 130

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Seed = Annotated[int, typer.Option("--seed", help="Of every draw: equal seeds give equal results.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it exists.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting; may be repeated.")]
Device = Annotated[str, typer.Option("--device", help="For instance cpu or cuda.")]
MetricsFile = Annotated[
    Path | None,
    typer.Option("--metrics-file", help="Write metrics for Prometheus here after every round (extra `metrics`)."),
]
MetricsPort = Annotated[
    int | None, typer.Option("--metrics-port", help="Serve metrics for Prometheus on this machine, 0: any free port.")
]
Log = Annotated[str, typer.Option("--log", help="Of what is logged: text, or json with a line per round.")]
DatasetArgument = Annotated[Path, typer.Argument(metavar="DATASET", help="Folder that `fedpa prepare` wrote.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `fedpa adapt` wrote.")]
MovedDataset = Annotated[
    Path | None, typer.Option("--dataset", metavar="DATASET", help="Where the run's data set is, if it was moved.")
]
MovedFoundation = Annotated[
    Path | None,
    typer.Option("--foundation", metavar="FOUNDATION", help="Where the run's foundation is, if it was moved."),
]


class Verbs(TyperGroup):
    """Turns what a user can mend into one message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run a verb."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except FedpaError as error:
            stop(f"error: {error}")
        except KeyboardInterrupt:
            stop("interrupted: nothing was left half-written", INTERRUPTED)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            hint = "\n  To fix it: free some space" if error.errno == errno.ENOSPC else ""
            stop(f"error: {place}{error.strerror or error}{hint}")
        return result


def stop(line: str, code: int = MISTAKE) -> None:
    """End a verb with a line on standard error."""
    typer.echo(line, err=True)
    raise typer.Exit(code) from None


STYLE: dict[str, Any] = {
    "cls": Verbs,
    "no_args_is_help": True,
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}


def example(*lines: str) -> str:
    """An epilog whose lines stay as they are."""
    return "\b\n" + "\n".join(("Example:", *(f"  {line}" for line in lines)))


def start_log(form: str) -> None:
    """Log to standard error, as text or JSON."""
    from fedpa.telemetry.logs import log_to

    if form not in ("text", "json"):
        raise ConfigError(f"--log {form}: expected text or json")
    log_to(form=form)  # type: ignore[arg-type]


def listed(text: str) -> list[str]:
    """The names of a value such as ``a,b``."""
    return [name.strip() for name in text.split(",") if name.strip()]


def options_given(context: typer.Context) -> set[str]:
    """Parameters of a command that stood on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def settings_of(function: Callable[..., object], assignments: list[str] | None) -> dict[str, Any]:
    """The settings of ``--set``; what has an option of its own is refused."""
    from fedpa.settings import parse_assignments

    settings = parse_assignments(assignments or [])
    for key in inspect.signature(function).parameters.keys() & settings.keys():
        raise ConfigError(f"--set {key}: is not a setting of the method", f"use the option --{key}, if there is one")
    return settings


def open_run(path: Path, dataset: Path | None, foundation: Path | None) -> Run:
    """A run with what it was made from, wherever that is now."""
    from fedpa.data.dataset import load_dataset
    from fedpa.models.wrap.source import open_foundation
    from fedpa.run import load_run

    opened: Dataset | None = None if dataset is None else load_dataset(dataset)
    loaded: Foundation | None = None if foundation is None else open_foundation(foundation)
    return load_run(path, foundation=loaded, dataset=opened)


def watched() -> bool:
    """Whether somebody sees progress bars."""
    return sys.stderr.isatty()
