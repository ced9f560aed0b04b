"""Processes that make and use tables, as the nursery bears them: struck at each of their steps."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from redis.asyncio import Redis

from services.processor import __main__ as processor_main
from services.processor.config import ProcessorSettings
from services.processor.materialize import sharing
from smile import logs
from smile.config import load
from smile.model.skip.distill import __main__ as distill_main
from smile.model.skip.distill import run as distill_run
from smile.representations import __main__ as build_main
from smile.rpc.server import run
from tests.faults.failpoints import Failpoints
from tests.faults.instruments import watch_calls, watch_files

ARGUMENTS, ROOT = "ARGUMENTS", "ROOT"  # of a command, as JSON; where its files are
ROWS_TOLD = 4  # in an entry, so that telling takes several


def builder(points: Failpoints) -> None:
    """`smile tables build`."""
    torch.set_num_threads(1)
    watch_files(Path(os.environ[ROOT]), points)
    sys.exit(build_main.main(json.loads(os.environ[ARGUMENTS])))


def distiller(points: Failpoints) -> None:
    """`smile backbones distill`, with a checkpoint after every step."""
    watch_files(Path(os.environ[ROOT]), points)
    vars(distill_run)["CHECKPOINT_S"] = 0.0
    sys.exit(distill_main.main(json.loads(os.environ[ARGUMENTS])))


def processor(points: Failpoints) -> None:
    """A processor, each of whose words to Redis is a step."""
    vars(sharing)["ENTRY_ROWS_MAX"] = ROWS_TOLD
    watch_calls(Redis, ("xadd", "xread", "exists"), points)
    settings = load(ProcessorSettings)
    logs.configure("processor", settings.log_level, settings.log_format)
    run(processor_main.main(settings))
