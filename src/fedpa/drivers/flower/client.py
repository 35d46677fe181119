"""The ClientApp of a node: ``clientapp = "fedpa.drivers.flower.client:app"``.

A SuperNode is started with ``--node-config 'dataset="FOLDER" foundation="FOLDER" store="FOLDER"'``. Torch and the rest
are imported only when there is something to compute.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedpa.drivers.flower.desk import Desk, Handler
from fedpa.drivers.flower.letter import KINDS, Letter, of_record, to_record
from fedpa.telemetry.logs import about, log_to

__all__ = ["app"]

app = ClientApp()


def _handlers() -> Mapping[str, Handler]:
    from fedpa.drivers.flower.secure_work import handlers

    return handlers()


def _answer(message: Message, context: Context) -> Message:
    log_to(sys.stderr, level=logging.INFO)
    letter: Letter = of_record(message.content)
    with about(run=str(letter.head.get("run", "")), node=str(letter.head.get("node", ""))):
        reply = Desk.of(context.node_config).answer(letter, _handlers)
    return Message(to_record(reply), reply_to=message)


for _kind in KINDS:
    app.query(_kind)(_answer)
