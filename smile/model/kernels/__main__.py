"""Builds the native kernels ahead of time: `python -m smile.model.kernels [--output FOLDER]`.

One library per kind of processor; the best one that a machine can run is taken there. By default
they are put where `kernels_for` looks first.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from smile.model.kernels import build


def main(arguments: list[str] | None = None) -> int:
    """Returns the process's exit code: 1 where nothing could be built."""
    parser = argparse.ArgumentParser(prog="python -m smile.model.kernels", description=__doc__)
    parser.add_argument("--output", type=Path, default=build.PREBUILT)
    names = [target.name for target in build.portable_targets()]
    parser.add_argument("--target", choices=names, action="append", help="all, if not given")
    asked = parser.parse_args(arguments)
    output: Path = asked.output
    chosen = [one for one in build.portable_targets() if one.name in (asked.target or names)]
    compiler = build.Compiler.find()
    if compiler is None:
        sys.stderr.write(f"no C++ compiler: looked for CXX, {', '.join(build.COMPILERS)}\n")
        return 1
    output.mkdir(parents=True, exist_ok=True)
    built = [_build(output, target, compiler) for target in chosen]
    return 0 if any(built) else 1


def _build(output: Path, target: build.Target, compiler: build.Compiler) -> bool:
    path = output / build.file_name(build.SOURCES, target)
    try:
        build.compile_to(path, build.SOURCES, target, compiler)
    except (OSError, subprocess.SubprocessError) as error:
        sys.stderr.write(f"{target.name}: {build.fault(error)}\n")
        return False
    sys.stderr.write(f"{target.name}: {path}\n")
    return True


if __name__ == "__main__":
    sys.exit(main())
