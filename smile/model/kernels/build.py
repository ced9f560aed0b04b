"""One shared library from the C++ files beside this one, built by the system's compiler.

Libraries are named by the digest of all that decides their machine code. A library that was built
before (`python -m smile.model.kernels`, as the container image does) serves wherever the processor
has what its target asks for; else one is compiled into a cache. Builds happen in a directory of
their own and are renamed into place, so processes may build at once. Nothing here raises for want
of a compiler: `load` answers None and the reason, and the torch kernels serve.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent
PREBUILT = SOURCES / "prebuilt"
COMPILERS = ("c++", "g++", "clang++")
X86 = ("x86_64", "AMD64")
COMPILE_SECONDS_MAX = 300
FLAGS = (
    "-std=c++17",
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-Wno-psabi",
    "-shared",
    "-fPIC",
)
_CHECKSUM_BYTES = 32  # sha256 of the library, behind its end, where the loader never looks
_OTHERS_WRITE = 0o022


@dataclass(frozen=True, slots=True)
class Target:
    """A processor to compile for.

    Attributes:
        flags: What tells the compiler.
        needs: Features a processor must have, as Linux names them.
    """

    name: str
    flags: tuple[str, ...]
    needs: frozenset[str]


_V3 = frozenset({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"})
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_BF16 = _V4 | {"avx512_bf16"}
_V4_FLAGS = ("-march=x86-64-v4", "-mprefer-vector-width=512")
_BF16_FLAGS = (*_V4_FLAGS, "-mavx512bf16")
TARGETS = (  # best first
    Target("amx", (*_BF16_FLAGS, "-mamx-tile", "-mamx-bf16"), _BF16 | {"amx_tile", "amx_bf16"}),
    Target("avx512bf16", _BF16_FLAGS, _BF16),
    Target("avx512", _V4_FLAGS, _V4),
    Target("avx2", ("-march=x86-64-v3",), _V3),
)


@dataclass(frozen=True, slots=True)
class Places:
    """Where sources and libraries lie.

    Attributes:
        cache: Libraries this machine compiled; None for `smile/kernels` in the user's own cache.
        prebuilt: Libraries that came with the installation.
    """

    cache: Path | None = None
    prebuilt: Path = PREBUILT
    sources: Path = SOURCES


@dataclass(frozen=True, slots=True)
class Compiler:
    """A C++ compiler: its path and what it says its version is."""

    path: str
    version: str

    @classmethod
    def find(cls, candidates: Sequence[str] | None = None) -> Compiler | None:
        """The first that answers: `CXX` if set, then the usual names."""
        names = (os.environ.get("CXX", ""), *COMPILERS) if candidates is None else candidates
        for name in names:
            path = shutil.which(name)
            version = None if path is None else _version(path)
            if path is not None and version is not None:
                return cls(path, version)
        return None


@dataclass(frozen=True, slots=True)
class Loaded:
    """The library, or why there is none.

    Attributes:
        origin: A line for the log: where the library came from, or what went wrong.
        target: What it was built for; empty where there is none.
    """

    handle: ctypes.CDLL | None
    origin: str
    target: str = ""


@functools.cache
def load(places: Places = Places()) -> Loaded:
    """The kernels' library for this processor, from where it can be had soonest."""
    targets = supported(processor_features())
    for target in targets:
        path = places.prebuilt / file_name(places.sources, target)
        library = _open(path)
        if library is not None:
            return Loaded(library, f"{target.name}, prebuilt: {path}", target.name)
    compiler = Compiler.find()
    if compiler is None:
        return Loaded(
            None, f"no prebuilt library and no C++ compiler (CXX, {', '.join(COMPILERS)})"
        )
    why = ""
    for target in targets:
        try:
            return _cached(places, target, compiler)
        except (OSError, subprocess.SubprocessError) as error:
            why = why or f"{compiler.path} for {target.name}: {fault(error)}"
    return Loaded(None, why)


def processor_features() -> frozenset[str]:
    """Features of this machine's processor, as Linux names them; empty where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def supported(features: frozenset[str]) -> tuple[Target, ...]:
    """Targets a processor with these features can run, best first; its own where none is known."""
    known = tuple(target for target in TARGETS if target.needs <= features)
    if known:
        return known
    identity = " ".join([platform.machine(), platform.processor(), *sorted(features)])
    own = hashlib.sha256(identity.encode()).hexdigest()[:8]
    x86 = platform.machine() in X86
    return (Target(f"own-{own}", ("-march=native" if x86 else "-mcpu=native",), features),)


def portable_targets() -> tuple[Target, ...]:
    """What to compile for ahead of time, on a machine that may not be the one that serves."""
    x86 = platform.machine() in X86
    return TARGETS if x86 else supported(processor_features())


def file_name(sources: Path, target: Target, compiler: Compiler | None = None) -> str:
    """Tells apart all that decides the machine code. A prebuilt one serves for any compiler."""
    digest = hashlib.sha256()
    for path in (*_sources(sources), *sorted(sources.glob("*.h"))):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update("\0".join((*FLAGS, *target.flags)).encode())
    digest.update(b"" if compiler is None else f"\0{compiler.path}\0{compiler.version}".encode())
    return f"{target.name}-{digest.hexdigest()[:24]}.so"


def compile_to(path: Path, sources: Path, target: Target, compiler: Compiler) -> None:
    """Compiles into `path`, which appears complete or not at all.

    Raises:
        OSError: the directory cannot be written.
        subprocess.SubprocessError: the compiler failed or ran out of time.
    """
    with tempfile.TemporaryDirectory(prefix=".build-", dir=path.parent) as folder:
        made = Path(folder) / "kernels.so"
        files = [str(source) for source in _sources(sources)]
        subprocess.run(
            [compiler.path, *FLAGS, *target.flags, *files, "-o", str(made)],
            check=True,
            capture_output=True,
            text=True,
            timeout=COMPILE_SECONDS_MAX,
        )
        content = made.read_bytes()
        made.write_bytes(content + hashlib.sha256(content).digest())
        made.replace(path)


def _cached(places: Places, target: Target, compiler: Compiler) -> Loaded:
    """From the cache, else compiled into it, or where it cannot be, into a private directory."""
    name = file_name(places.sources, target, compiler)
    try:
        folder = _cache_folder(places.cache)
        library = _open(folder / name)
        if library is None:
            compile_to(folder / name, places.sources, target, compiler)
            library = _open(folder / name)
    except OSError as error:
        why = fault(error)
    else:
        if library is None:
            return Loaded(None, f"{folder / name} does not load")
        return Loaded(library, f"{target.name}: {folder / name}", target.name)
    with tempfile.TemporaryDirectory(prefix="smile-kernels-") as private:
        compile_to(Path(private) / name, places.sources, target, compiler)
        library = _open(Path(private) / name)  # its file may go once it is mapped
    return Loaded(library, f"{target.name}, not cached: {why}", target.name)


def _cache_folder(cache: Path | None) -> Path:
    """The cache, made if missing.

    Raises:
        OSError: it cannot be made, or others may write there: this process would run their code.
    """
    folder = cache or _own_cache() / "smile" / "kernels"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = folder.stat()
    if found.st_uid != os.geteuid() or found.st_mode & _OTHERS_WRITE:
        raise PermissionError(f"{folder} is another user's or others may write to it")
    return folder


def _own_cache() -> Path:
    stated = os.environ.get("XDG_CACHE_HOME", "")
    if Path(stated).is_absolute():
        return Path(stated)
    try:
        return Path.home() / ".cache"
    except RuntimeError as error:
        raise OSError(str(error)) from None


def _open(path: Path) -> ctypes.CDLL | None:
    """The library in `path`; None where there is none, or not the one that was written."""
    try:
        content = path.read_bytes()
        body, checksum = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
        if hashlib.sha256(body).digest() != checksum:
            return None
        return ctypes.CDLL(str(path))
    except OSError:
        return None


def _sources(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.cpp"))


def _version(path: str) -> str | None:
    try:
        found = subprocess.run(
            [path, "--version"], check=True, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.partition("\n")[0]


def fault(error: Exception) -> str:
    """One line, with the end of what a compiler said, or how it ended where it said nothing."""
    said, ended = "", str(error)
    match error:
        case subprocess.TimeoutExpired(timeout=seconds):
            ended = f"the compiler took longer than {seconds:g} s"
        case subprocess.CalledProcessError(returncode=code):
            said = error.stderr or ""
            how = f"by signal {-code}" if code < 0 else f"with code {code}"
            ended = f"the compiler ended {how}"
    lines = [line for line in (said or ended).splitlines() if line.strip()]
    faults = [line for line in lines if "error" in line]
    return (faults or lines or [type(error).__name__])[0][:300]
