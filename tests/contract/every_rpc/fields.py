"""The strings of requests: where they stand, and requests with another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message

from tests.contract.every_rpc.areas import NAMES, OUTPUT, Requests
from tests.contract.every_rpc.contracts import Path


def string_fields(message: Descriptor, at: Path = ()) -> Iterator[tuple[Path, FieldDescriptor]]:
    """Every string a request can hold, and how to get there."""
    for entry in message.fields:
        where = (*at, entry.name)
        if entry.type == FieldDescriptor.TYPE_STRING:
            yield where, entry
        elif entry.message_type is not None and entry.message_type.full_name not in OUTPUT:
            if entry.message_type.GetOptions().map_entry:
                yield where, entry
            else:
                yield from string_fields(entry.message_type, where)


def name_paths(method: MethodDescriptor) -> list[Path]:
    """Where requests of a method name resources of tenants."""
    return [where for where, entry in string_fields(method.input_type) if entry.full_name in NAMES]


def value_at(request: Requests, where: Path) -> str:
    found: Any = _first(request)
    for part in where:
        found = _one(getattr(found, part))
    assert isinstance(found, str)
    return found


def with_value(request: Requests, where: Path, value: str) -> Requests:
    """A copy with another string; of streams, in the first message. Lists without an element get
    one on the way."""
    head = type(first := _first(request))()
    head.CopyFrom(first)
    target: Any = head
    for part in where[:-1]:
        found = getattr(target, part)
        target = _one(found) if isinstance(found, Message) or found else found.add()
    setattr(target, where[-1], value)
    return [head, *request[1:]] if isinstance(request, list) else head


def _one(value: Any) -> Any:
    """The first where there are several."""
    return value if isinstance(value, str | Message) else value[0]


def _first(request: Requests) -> Message:
    return request[0] if isinstance(request, list) else request
