from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
import torch

from smile.model.kernels import (
    EAGER,
    KernelChoice,
    __main__,
    build,
    kernels_for,
)
from smile.model.kernels.build import COMPILERS, TARGETS, Compiler, Places

COMPILER = Compiler.find()
CPU = torch.device("cpu")
SOURCE = '#include "answer.h"\nextern "C" int smile_answer() { return ANSWER; }\n'

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler on this machine")


@pytest.fixture(autouse=True)
def nothing_remembered() -> None:
    build.load.cache_clear()


@pytest.fixture
def places(tmp_path: Path) -> Places:
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "answer.h").write_text("#define ANSWER 42\n")
    (sources / "answer.cpp").write_text(SOURCE)
    return Places(tmp_path / "cache" / "kernels", tmp_path / "prebuilt", sources)


def _answer(loaded: build.Loaded) -> int:
    assert loaded.handle is not None, loaded.origin
    answer: int = loaded.handle.smile_answer()
    return answer


def _files(places: Places) -> list[Path]:
    assert places.cache is not None
    return sorted(places.cache.iterdir())


@needs_compiler
def test_compiled_once(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _answer(build.load(places)) == 42
    (made,) = _files(places)
    build.load.cache_clear()
    monkeypatch.setattr(build, "compile_to", None)
    again = build.load(places)
    assert _answer(again) == 42
    assert str(made) in again.origin


@needs_compiler
def test_changed_sources_are_compiled_again(places: Places) -> None:
    assert _answer(build.load(places)) == 42
    (places.sources / "answer.h").write_text("#define ANSWER 43\n")
    build.load.cache_clear()
    assert _answer(build.load(places)) == 43
    assert len(_files(places)) == 2


@needs_compiler
@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "text"])
def test_a_broken_file_is_replaced(places: Places, damage: str) -> None:
    """Before it is loaded: a truncated library would end the process."""
    compiler = COMPILER
    assert compiler is not None and places.cache is not None
    target = build.supported(build.processor_features())[0]
    path = places.cache / build.file_name(places.sources, target, compiler)
    path.parent.mkdir(parents=True, mode=0o700)
    build.compile_to(path, places.sources, target, compiler)
    whole = path.read_bytes()
    half = len(whole) // 2
    path.write_bytes(
        {
            "truncated": whole[:half],
            "flipped": whole[:half] + bytes([whole[half] ^ 1]) + whole[half + 1 :],
            "empty": b"",
            "text": b"not a library",
        }[damage]
    )
    assert _answer(build.load(places)) == 42
    content = path.read_bytes()
    assert hashlib.sha256(content[:-32]).digest() == content[-32:]


@needs_compiler
def test_faulty_sources_leave_torch_and_say_why(places: Places) -> None:
    (places.sources / "answer.cpp").write_text('#error "this is why"\n')
    loaded = build.load(places)
    assert loaded.handle is None
    assert "this is why" in loaded.origin
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            assert kernels_for(CPU, torch.float32, KernelChoice.AUTO, places) is EAGER
    (line,) = logs
    assert line["log_level"] == "warning"
    assert "this is why" in line["why"]


def test_no_compiler(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(build, "COMPILERS", ("no-such-compiler",))
    loaded = build.load(places)
    assert loaded.handle is None
    assert "no C++ compiler" in loaded.origin


@needs_compiler
def test_prebuilt_needs_no_compiler(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    assert COMPILER is not None
    places.prebuilt.mkdir()
    features = build.processor_features()
    for target in build.supported(features):
        path = places.prebuilt / build.file_name(places.sources, target)
        build.compile_to(path, places.sources, target, COMPILER)
    monkeypatch.setattr(Compiler, "find", lambda: None)
    loaded = build.load(places)
    assert _answer(loaded) == 42
    assert "prebuilt" in loaded.origin
    assert build.supported(features)[0].name in loaded.origin
    (places.sources / "answer.h").write_text("#define ANSWER 43\n")
    build.load.cache_clear()
    assert build.load(places).handle is None  # other sources: not what was built


@needs_compiler
@pytest.mark.parametrize("obstacle", ["a file", "others may write"])
def test_an_unusable_cache(places: Places, obstacle: str) -> None:
    assert places.cache is not None
    places.cache.parent.mkdir()
    if obstacle == "a file":
        places.cache.write_text("")
    else:
        places.cache.mkdir()
        places.cache.chmod(0o777)
    loaded = build.load(places)
    assert _answer(loaded) == 42
    assert "not cached" in loaded.origin


@needs_compiler
def test_no_home(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert _answer(build.load(replace(places, cache=None))) == 42


@needs_compiler
def test_the_users_cache(places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    assert _answer(build.load(replace(places, cache=None))) == 42
    assert list((tmp_path / "mine" / "smile" / "kernels").glob("*.so"))


@needs_compiler
def test_processes_build_at_once(places: Places) -> None:
    code = (
        "import sys; from pathlib import Path; from smile.model.kernels import build;"
        "found = build.load(build.Places(*map(Path, sys.argv[1:])));"
        "sys.exit(found.handle.smile_answer() - 42)"
    )
    command = [
        sys.executable,
        "-c",
        code,
        *map(str, (places.cache, places.prebuilt, places.sources)),
    ]
    running = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait(timeout=120) for process in running] == [0, 0, 0]
    assert len(_files(places)) == 1


@needs_compiler
def test_one_target_failing_leaves_the_next(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = replace(TARGETS[0], name="unknown", flags=("-march=of-the-future",))
    own = build.supported(build.processor_features())[-1]
    monkeypatch.setattr(build, "supported", lambda _: (unknown, own))
    loaded = build.load(places)
    assert _answer(loaded) == 42
    assert loaded.origin.startswith(own.name)


def test_targets() -> None:
    assert [target.name for target in build.supported(TARGETS[0].needs)] == [
        target.name for target in TARGETS
    ]
    assert [t.name for t in build.supported(TARGETS[2].needs | {"sse4_2"})] == ["avx512", "avx2"]
    (own,) = build.supported(frozenset({"neon"}))
    (other,) = build.supported(frozenset({"neon", "sve"}))
    assert own.name != other.name


def test_names(places: Places) -> None:
    def name(target: build.Target = TARGETS[0], version: str | None = None) -> str:
        compiler = None if version is None else Compiler("/usr/bin/c++", version)
        return build.file_name(places.sources, target, compiler)

    names = [name(), name(TARGETS[1]), name(version="12"), name(version="13")]
    (places.sources / "answer.h").write_text("#define ANSWER 43\n")
    assert len({*names, name()}) == 5


def test_finding_a_compiler(tmp_path: Path) -> None:
    broken = tmp_path / "broken-c++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    good = tmp_path / "good-c++"
    good.write_text("#!/bin/sh\necho good 1.0\n")
    good.chmod(0o755)
    found = Compiler.find(["", "no-such-compiler", str(broken), str(good)])
    assert found == Compiler(str(good), "good 1.0")
    assert Compiler.find(["no-such-compiler"]) is None


@pytest.mark.parametrize(
    ("ends", "seconds_max", "told"),
    [
        ("exec sleep 600", 0.5, "the compiler took longer than 0.5 s"),
        ("kill -KILL $$", 100, "the compiler ended by signal 9"),
        ("exit 3", 100, "the compiler ended with code 3"),
    ],
)
def test_a_compiler_that_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str, seconds_max: float, told: str
) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text(f"#!/bin/sh\n{ends}\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(build, "COMPILE_SECONDS_MAX", seconds_max)
    with pytest.raises(subprocess.SubprocessError) as caught:
        build.compile_to(tmp_path / "k.so", build.SOURCES, TARGETS[0], Compiler(str(compiler), "1"))
    assert build.fault(caught.value) == told


@needs_compiler
@pytest.mark.timeout(900)  # a compiler at work, on a machine that may be starved
def test_building_ahead(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "image"
    assert __main__.main(["--output", str(output), "--target", "avx2"]) == 0
    (made,) = output.iterdir()
    assert made.name.startswith("avx2-")
    assert str(made) in capfd.readouterr().err


def test_building_ahead_without_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Compiler, "find", lambda: None)
    assert __main__.main(["--output", str(tmp_path / "image")]) == 1
    said = capfd.readouterr().err
    assert all(name in said for name in COMPILERS)


@needs_compiler
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc/self/maps")
def test_one_pool_of_threads(tmp_path: Path) -> None:
    """Of torch and the kernels: one OpenMP runtime is mapped, and its threads run both."""
    script = tmp_path / "threads.py"
    script.write_text(
        "import os, torch\n"
        "from smile.model.kernels import KernelChoice, kernels_for\n"
        "from smile.model.kernels.activation import Activation\n"
        "torch.set_num_threads(3)\n"
        "y = torch.zeros(3000, 1000)\n"
        "y.add(y)\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "kernels = kernels_for(torch.device('cpu'), torch.float32, KernelChoice.NATIVE)\n"
        "kernels.dense.activate_(y, Activation.GELU)\n"
        "print('tasks', before, len(os.listdir('/proc/self/task')))\n"
        "print(open('/proc/self/maps').read())\n"
    )
    found = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(build.SOURCES.parents[2])},
    ).stdout
    runtimes = set(re.findall(r"\S*/lib(?:gomp|omp|iomp5)\S*\.so\S*", found))
    assert len(runtimes) == 1, runtimes
    counted = re.search(r"tasks (\d+) (\d+)", found)
    assert counted is not None
    assert int(counted[1]) >= 3
    assert counted[1] == counted[2]


@needs_compiler
def test_threads_share_the_work(places: Places) -> None:
    shutil.copy(build.SOURCES / "common.h", places.sources)
    (places.sources / "answer.cpp").write_text(
        '#include "common.h"\n'
        "#include <thread>\n"
        'extern "C" void smile_who(int64_t* ids, int64_t count, int threads) {\n'
        "    smile::parallel_for(count, 1, threads, [&](int64_t begin, int64_t end) {\n"
        "        for (int64_t at = begin; at < end; ++at) {\n"
        "            ids[at] = static_cast<int64_t>(\n"
        "                std::hash<std::thread::id>{}(std::this_thread::get_id()));\n"
        "            std::this_thread::sleep_for(std::chrono::milliseconds(5));\n"
        "        }\n"
        "    });\n"
        "}\n"
    )
    library = build.load(places).handle
    assert library is not None
    for threads, count in ((1, 5), (2, 20), (3, 20), (4, 1)):
        ids = (ctypes.c_int64 * count)()
        library.smile_who(ids, ctypes.c_int64(count), threads)
        assert all(ids)
        assert len(set(ids)) == min(threads, count)
