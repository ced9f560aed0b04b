"""Run as a file: make this process die with its parent, then become another program.

    python -I -S leash.py PARENT_PID PROGRAM [ARGUMENT...]

A small program of its own rather than code between fork and exec, which is not safe in a process
with threads. Linux only; elsewhere the program is started without the tie.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
EXIT_NOT_FOUND = 127


def main(arguments: list[str]) -> None:
    """Never returns: execs, or exits with 127 where the program cannot be run."""
    parent, program = int(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != parent:  # it died before the tie was made
            sys.exit(0)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        os.execvp(program[0], program)  # noqa: S606
    except OSError as error:
        sys.stderr.write(f"cannot run {program[0]}: {error.strerror}\n")
        sys.exit(EXIT_NOT_FOUND)


if __name__ == "__main__":
    main(sys.argv[1:])
