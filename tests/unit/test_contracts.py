"""The contracts keep the API rules: access declared, request ids, pages, names, comments."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from smile.v1 import options_pb2

MODULES = ("creator", "storage", "datasets", "identity", "trainer", "training_records", "processor")
IMAGE = Path(__file__).resolve().parents[2] / "protos" / "baseline.binpb"
MUTATIONS = (
    *("Create", "Update", "Delete", "Set", "Put", "Upload", "Cancel", "Revoke", "Commit"),
    *("Import", "Undelete", "Rollback"),
)
BOUNDED = ("ListAliasMoves",)  # as many as are kept: twenty
# Records of jobs are idempotent by the job's own name and fence.
NAMED_BY_CONTENT = "TrainingRecordService"


def _services() -> Iterator[ServiceDescriptor]:
    for name in MODULES:
        module = importlib.import_module(f"smile.v1.{name}_pb2")
        yield from module.DESCRIPTOR.services_by_name.values()


METHODS = [method for service in _services() for method in service.methods]


def _id(method: MethodDescriptor) -> str:
    return f"{method.containing_service.name}.{method.name}"


def _fields(method: MethodDescriptor) -> set[str]:
    message = method.input_type
    header = message.fields_by_name.get("header")
    if header is not None and header.message_type is not None:
        message = header.message_type
    return {field.name for field in message.fields}


@pytest.mark.parametrize("method", METHODS, ids=_id)
def test_every_method_says_who_may_call_it(method: MethodDescriptor) -> None:
    access = method.GetOptions().Extensions[options_pb2.access]
    assert len(access.roles) > 0
    assert options_pb2.ROLE_UNSPECIFIED not in access.roles


@pytest.mark.parametrize("method", METHODS, ids=_id)
def test_mutations_carry_a_request_id(method: MethodDescriptor) -> None:
    if method.containing_service.name == NAMED_BY_CONTENT:
        return
    mutates = method.name.startswith(MUTATIONS)
    assert ("request_id" in _fields(method)) == mutates


LISTS = [m for m in METHODS if m.name.startswith("List") and m.name not in BOUNDED]


@pytest.mark.parametrize("method", LISTS, ids=_id)
def test_lists_are_paged(method: MethodDescriptor) -> None:
    assert {"page_size", "page_token"} <= _fields(method)
    assert "next_page_token" in {field.name for field in method.output_type.fields}


@pytest.mark.parametrize("method", METHODS, ids=_id)
def test_names_are_bounded(method: MethodDescriptor) -> None:
    """Strings have a limit in the schema, except texts, whose limit depends on configuration."""
    from buf.validate import validate_pb2

    message = method.input_type
    for field in message.fields:
        if field.type != field.TYPE_STRING or field.name in ("text", "texts"):
            continue
        rules = field.GetOptions().Extensions[validate_pb2.field].string
        limited = rules.max_len or rules.pattern or rules.uuid
        assert limited, f"{message.name}.{field.name} has no limit"


def test_every_method_and_service_is_commented() -> None:
    image = descriptor_pb2.FileDescriptorSet.FromString(IMAGE.read_bytes())
    bare = []
    for file in image.file:
        if not file.name.startswith("smile/"):
            continue
        comments = {tuple(loc.path): loc.leading_comments for loc in file.source_code_info.location}
        for s, service in enumerate(file.service):
            if not comments.get((6, s)):
                bare.append(service.name)
            for m, method in enumerate(service.method):
                if not comments.get((6, s, 2, m)):
                    bare.append(f"{service.name}.{method.name}")
    assert bare == []
