"""The supervisor process: `python -m smile.embedded CONFIG`, started by `launch.start`."""

from __future__ import annotations

import asyncio
import signal
import sys

from pydantic import TypeAdapter

from smile.config import inherited_environment
from smile.embedded.directory import DataDirectory
from smile.embedded.keys import load_or_create_secrets
from smile.embedded.services import PlatformConfig, child_specs
from smile.embedded.supervisor import Board, Supervisor, SupervisorTimes
from smile.logs import LogFormat, LogLevel, configure


async def supervise(config: PlatformConfig) -> int:
    """Run the platform until SIGTERM or SIGINT; gives the exit code."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    directory = DataDirectory(config.data)
    secrets = load_or_create_secrets(directory.secrets_file)
    stages = child_specs(config, secrets, inherited_environment())
    specs = [spec for stage in stages for spec in stage]
    board = Board(directory.state_file, directory.root, specs)
    times = SupervisorTimes(start_s_max=config.start_s_max)
    return await Supervisor(stages, board, times).run(stop)


def main(argument: str) -> int:
    configure("supervisor", LogLevel.INFO, LogFormat.JSON)
    return asyncio.run(supervise(TypeAdapter(PlatformConfig).validate_json(argument)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
