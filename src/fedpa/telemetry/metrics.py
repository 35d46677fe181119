"""Metrics of a run in Prometheus' format, to a file or over HTTP; needs the extra ``fedpa[metrics]``.

| metric | kind | labels | what |
|---|---|---|---|
| `fedpa_round` | gauge | | the last completed round |
| `fedpa_rounds_total` | counter | | rounds completed by this process |
| `fedpa_round_seconds` | histogram | `phase` | seconds of a round: `train`, `evaluate` |
| `fedpa_participants` | gauge | | users who took part in the last round |
| `fedpa_nodes` | gauge | | nodes whose uploads were counted in the last round |
| `fedpa_late_nodes_total` | counter | | nodes that a round went on without |
| `fedpa_refused_uploads_total` | counter | `reason` | uploads that were refused |
| `fedpa_bytes_total` | counter | `direction` | bytes of parameters, `up` and `down`, counted from the scopes |
| `fedpa_validation` | gauge | `metric` | `auc`, `gauc`, `logloss` on validation rows |

All carry the label `run`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedpa.errors import ConfigError

__all__ = ["Metrics"]

_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The metrics of one run.

    Parameters
    ----------
    run : str
        Id of the run.
    file : Path, optional
        Written anew after every round, by rename, for node exporter's textfile collector.
    port : int, optional
        Served over HTTP at ``/metrics``; 0 takes a free one.
    host : str
        Where it is served; by default to this machine alone.

    Attributes
    ----------
    port : int or None
        Where it is served.

    Raises
    ------
    ConfigError
        If the extra is not installed or the port is taken.
    """

    def __init__(self, run: str, *, file: Path | None = None, port: int | None = None, host: str = "127.0.0.1") -> None:
        try:
            import prometheus_client as prometheus
        except ImportError as error:
            raise ConfigError("metrics need an extra that is not installed", "pip install 'fedpa[metrics]'") from error
        prometheus.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._prometheus, self._file, self._run, self.port = prometheus, file, run, port
        self._registry = prometheus.CollectorRegistry()
        self._gauges = {
            name: prometheus.Gauge(f"fedpa_{name}", text, ["run"], registry=self._registry)
            for name, text in (
                ("round", "The last completed round"),
                ("participants", "Users who took part in the last round"),
                ("nodes", "Nodes whose uploads were counted in the last round"),
            )
        }
        self._rounds = prometheus.Counter("fedpa_rounds", "Completed rounds", ["run"], registry=self._registry)
        self._late = prometheus.Counter(
            "fedpa_late_nodes", "Nodes that a round went on without", ["run"], registry=self._registry
        )
        self._seconds = prometheus.Histogram(
            "fedpa_round_seconds", "Seconds of a round", ["run", "phase"], buckets=_SECONDS, registry=self._registry
        )
        self._refused = prometheus.Counter(
            "fedpa_refused_uploads", "Uploads that were refused", ["run", "reason"], registry=self._registry
        )
        self._bytes = prometheus.Counter(
            "fedpa_bytes", "Bytes of parameters, counted from the scopes", ["run", "direction"], registry=self._registry
        )
        self._validation = prometheus.Gauge(
            "fedpa_validation", "Metrics on validation rows", ["run", "metric"], registry=self._registry
        )
        self._server: Any = None
        if port is not None:
            try:
                self._server, _ = prometheus.start_http_server(port, host, self._registry)
            except OSError as error:
                raise ConfigError(
                    f"metrics port {port}: cannot be used ({error.strerror})", "choose another"
                ) from error
            self.port = self._server.server_port

    def observe(self, line: Mapping[str, Any]) -> None:
        """Take in what was noted of a round, a line of ``metrics.jsonl``."""
        run = self._run
        self._gauges["round"].labels(run).set(line["round"])
        self._gauges["participants"].labels(run).set(line["participants"])
        self._gauges["nodes"].labels(run).set(line.get("nodes", 0))
        if line["round"]:
            self._rounds.labels(run).inc()
        self._late.labels(run).inc(line.get("late", 0))
        if line["round"]:
            self._seconds.labels(run, "train").observe(line["seconds_train"])
        self._seconds.labels(run, "evaluate").observe(line["seconds_eval"])
        for reason, count in line.get("refused", {}).items():
            self._refused.labels(run, reason).inc(count)
        for direction in ("up", "down"):
            self._bytes.labels(run, direction).inc(line[f"bytes_{direction}"])
        for metric, value in line["val"].items():
            if value is not None:
                self._validation.labels(run, metric).set(value)
        if self._file is not None:
            self._prometheus.write_to_textfile(str(self._file), self._registry)

    def text(self) -> str:
        """All metrics, as they are served."""
        found: str = self._prometheus.generate_latest(self._registry).decode()
        return found

    def close(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
