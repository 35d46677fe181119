"""The ServerApp of a run: ``serverapp = "fedpa.drivers.flower.server:app"``; its options are the run config."""

from __future__ import annotations

import logging
import sys

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedpa.drivers.flower.options import Options
from fedpa.telemetry.logs import log_to

__all__ = ["app"]

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run or go on, to the end."""
    from fedpa.drivers.flower.job import run_on_nodes

    options = Options.of(context.run_config)
    log_to(sys.stdout, form=options.log, level=logging.INFO)
    run_on_nodes(grid, options)
