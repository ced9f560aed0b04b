"""On what a figure was measured: without this a figure says nothing."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import psutil

from benchmarks.harness.json_types import Json

LOAD_IDLE_MAX = 0.5  # load average over the last minute, of all cores together
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8")
PACKAGES = ("torch", "numpy", "grpcio", "tokenizers")
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Machine:
    """Hardware, software and how busy it was at the start.

    Attributes:
        flags: The instruction sets that decide speed, of those the CPU has.
        threads: What torch computes with unless told otherwise.
        compiler: First line of the C++ compiler's version; empty where native kernels cannot be
            built.
        load: Load average of the last minute at the start.
        revision: The commit measured, with `+` where files differ from it.
    """

    cpu: str
    cores: int
    flags: tuple[str, ...]
    ram_gib: float
    system: str
    python: str
    packages: dict[str, str]
    threads: int
    compiler: str
    load: float
    revision: str

    @classmethod
    def describe(cls) -> Machine:
        """This machine, now."""
        cpu, flags = _cpu()
        return cls(
            cpu=cpu,
            cores=os.cpu_count() or 1,
            flags=tuple(flag for flag in FLAGS if flag in flags),
            ram_gib=round(psutil.virtual_memory().total / 2**30, 1),
            system=f"{platform.system()} {platform.release()} {platform.machine()}",
            python=platform.python_version(),
            packages={name: metadata.version(name) for name in PACKAGES},
            threads=int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))),
            compiler=_first_line("c++", "--version"),
            load=round(os.getloadavg()[0], 2),
            revision=_revision(),
        )

    @property
    def idle(self) -> bool:
        """Whether nothing else seems to run."""
        return self.load <= LOAD_IDLE_MAX

    def as_json(self) -> Json:
        return {**asdict(self), "flags": list(self.flags), "idle": self.idle}


def _cpu() -> tuple[str, frozenset[str]]:
    """(model name with family, model and stepping; flags)."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor() or platform.machine(), frozenset()
    first = path.read_text().split("\n\n", 1)[0]
    fields = dict(line.split(":", 1) for line in first.splitlines() if ":" in line)
    facts = {name.strip(): value.strip() for name, value in fields.items()}
    numbers = "/".join(facts.get(name, "?") for name in ("cpu family", "model", "stepping"))
    name = facts.get("model name", platform.machine())
    return f"{name} ({numbers})", frozenset(facts.get("flags", "").split())


def _revision() -> str:
    head = _first_line("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    changed = _first_line("git", "-C", str(ROOT), "status", "--porcelain", "-uno")
    return head + ("+" if changed else "")


def _first_line(*command: str) -> str:
    """The first line a program writes; empty where it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.partition("\n")[0]
