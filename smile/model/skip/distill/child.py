"""What scripts share that the command line starts: what they say, and that each works alone.

One JSON object a line on standard output: progress while it runs, and `result` or `error` at its
end; see `smile.cli.children`.
"""

from __future__ import annotations

import fcntl
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from smile.errors import FailedPrecondition, SmileError, Unavailable

LOCK_WAIT_S = 5.0  # for one that was told to end and has not yet
LOCK_LOOK_S = 0.1
LOCK_FILE = "lock"


def say(what: Mapping[str, object]) -> None:
    """One line."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def say_refused(caught: SmileError | OSError) -> None:
    """The error that ends it."""
    error = caught if isinstance(caught, SmileError) else Unavailable(f"files: {caught}")
    say(
        {
            "error": {
                "class": type(error).__name__,
                "reason": error.reason,
                "message": error.message,
                "metadata": error.metadata,
            }
        }
    )


@contextmanager
def alone(work: Path) -> Iterator[None]:
    """Holds the folder's lock, which the system takes back from a process that ends.

    Raises:
        FailedPrecondition: another process keeps it.
    """
    with (work / LOCK_FILE).open("w") as file:
        until = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise FailedPrecondition(
                        f"another process distils in {work}", reason="DISTILLATION_RUNS"
                    ) from None
                time.sleep(LOCK_LOOK_S)
        yield
