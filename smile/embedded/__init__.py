"""The whole platform on one machine: a supervisor process and one process per service.

    launch.start ── spawns ──> python -m smile.embedded (supervisor)
                                 ├── redis       queue of training jobs, on disk below --data
                                 ├── storage     objects below --data
                                 ├── creator
                                 ├── trainer     and its workers
                                 └── processor

The supervisor holds the lock on the data directory for its life, writes `run/platform.json` at
every change, restarts what crashes, and takes its children with it whichever way it ends. Services
are started by module name: nothing here imports them.
"""

from __future__ import annotations

from smile.embedded.launch import PlatformOptions, running, start, stop
from smile.embedded.report import PlatformReport, ServiceReport, report
from smile.embedded.state import ChildPhase, ChildState, PlatformPhase, PlatformState

__all__ = [
    "ChildPhase",
    "ChildState",
    "PlatformOptions",
    "PlatformPhase",
    "PlatformReport",
    "PlatformState",
    "ServiceReport",
    "report",
    "running",
    "start",
    "stop",
]
