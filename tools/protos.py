"""Generate `smile/v1` from `protos/` and gate the contracts: drift, lint, breaking changes.

    python tools/protos.py generate    write the typed stubs
    python tools/protos.py check       fail on drift, lint findings and breaking changes
    python tools/protos.py baseline    make the contracts of now the baseline

`buf/validate/validate.proto` is taken from the protovalidate wheel, so it works offline.
"""

from __future__ import annotations

import filecmp
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    duration_pb2,
    empty_pb2,
    field_mask_pb2,
    timestamp_pb2,
)
from google.rpc import status_pb2
from protovalidate._gen.buf.validate import validate_pb

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
BASELINE = PROTOS / "baseline.binpb"
GENERATED = ("smile/v1", "buf/validate")


def _dependencies() -> descriptor_pb2.FileDescriptorSet:
    """Well-known types and protovalidate's rules, as descriptors from the installed wheels."""
    files = descriptor_pb2.FileDescriptorSet()
    for module in (
        *(any_pb2, descriptor_pb2, duration_pb2, empty_pb2, field_mask_pb2, timestamp_pb2),
        status_pb2,
    ):
        module.DESCRIPTOR.CopyToProto(files.file.add())
    files.file.add().MergeFromString(validate_pb._DESC.proto.to_binary())
    return files


def _protoc(output: Path, work: Path) -> None:
    dependencies = work / "dependencies.binpb"
    dependencies.write_bytes(_dependencies().SerializeToString())
    contracts = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    bin_dir = Path(sys.executable).parent
    base = [
        sys.executable, "-m", "grpc_tools.protoc",
        f"--descriptor_set_in={dependencies}", "-I", str(PROTOS),
    ]  # fmt: skip
    plugins = [
        f"--plugin=protoc-gen-mypy={bin_dir / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={bin_dir / 'protoc-gen-mypy_grpc'}",
    ]
    rules = "buf/validate/validate.proto"
    messages = [f"--python_out={output}", f"--mypy_out=quiet:{output}"]
    services = [f"--grpc_python_out={output}", f"--mypy_grpc_out=quiet:{output}"]
    _run([*base, *plugins, *messages, *services, *contracts])
    _run([*base, *plugins, *messages, rules])
    _run([*base, f"--descriptor_set_out={work / 'all.binpb'}", "--include_imports",
          "--include_source_info", *contracts])  # fmt: skip
    (output / "smile/v1/__init__.py").write_text(
        '"""Generated from `protos/smile/v1` by `make protos`. Never edited by hand."""\n'
    )
    for stub in output.rglob("*_pb2_grpc.py*"):
        if "Stub" not in stub.read_text():
            stub.unlink()


def _run(command: list[str]) -> None:
    completed = subprocess.run(command, cwd=PROTOS, capture_output=True, text=True, check=False)
    if completed.returncode != 0:
        sys.stderr.write(completed.stdout + completed.stderr)
        raise SystemExit(completed.returncode)


def _generate(work: Path) -> Path:
    output = work / "python"
    output.mkdir()
    _protoc(output, work)
    return output


def generate() -> None:
    with tempfile.TemporaryDirectory() as directory:
        output = _generate(Path(directory))
        for package in GENERATED:
            shutil.rmtree(ROOT / package, ignore_errors=True)
            shutil.copytree(output / package, ROOT / package)


def check() -> None:
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        output = _generate(work)
        drift = [name for package in GENERATED for name in _differences(output, package)]
        if drift:
            sys.stderr.write(
                f"generated code is out of date: {', '.join(drift)}\nrun: make protos\n"
            )
            raise SystemExit(1)
        buf = str(Path(sys.executable).parent / "buf")
        config = ["--config", str(PROTOS / "buf.yaml")]
        _run([buf, "lint", str(work / "all.binpb"), *config])
        _run([buf, "breaking", str(work / "all.binpb"), "--against", str(BASELINE), *config])


def baseline() -> None:
    with tempfile.TemporaryDirectory() as directory:
        _generate(Path(directory))
        shutil.copyfile(Path(directory) / "all.binpb", BASELINE)


def _differences(output: Path, package: str) -> list[str]:
    """Files of a generated package that are missing, extra or different in the tree."""
    fresh, kept = output / package, ROOT / package
    names = {str(p.relative_to(fresh)) for p in fresh.rglob("*.py*")}
    names |= {str(p.relative_to(kept)) for p in kept.rglob("*.py*") if "__pycache__" not in str(p)}
    return sorted(
        f"{package}/{name}"
        for name in names
        if not (fresh / name).exists()
        or not (kept / name).exists()
        or not filecmp.cmp(fresh / name, kept / name, shallow=False)
    )


if __name__ == "__main__":
    commands = {"generate": generate, "check": check, "baseline": baseline}
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        raise SystemExit(__doc__)
    commands[sys.argv[1]]()
