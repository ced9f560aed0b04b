"""Bytes of a request to a message that keeps its contract: parse, then protovalidate."""

from __future__ import annotations

from collections.abc import Callable

import protovalidate
from google.protobuf.message import DecodeError, Message

from smile.errors import InvalidArgument

VIOLATIONS_SHOWN_MAX = 20


def decode(data: bytes, deserializer: Callable[[bytes], Message]) -> Message:
    """The message in `data`.

    Raises:
        InvalidArgument: the bytes are not such a message (a string that is not UTF-8, say), or the
        message
            breaks rules of its contract; then every broken rule is listed.
    """
    try:
        message = deserializer(data)
    except DecodeError as error:
        raise InvalidArgument(str(error), reason="REQUEST_MALFORMED") from None
    check(message)
    return message


def check(message: Message) -> None:
    """Raise `InvalidArgument` where `message` breaks rules of its contract."""
    violations = [_shown(violation) for violation in protovalidate.collect_violations(message)]
    if not violations:
        return
    field, description = violations[0]
    more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
    raise InvalidArgument(
        f"{field or message.DESCRIPTOR.name}: {description}{more}",
        reason="REQUEST_INVALID",
        violations=violations[:VIOLATIONS_SHOWN_MAX],
    )


def _shown(violation: protovalidate.Violation) -> tuple[str, str]:
    proto = violation.proto
    description = proto.message or proto.rule_id or "breaks a rule of the contract"
    return _path(proto.field), description


def _path(path: protovalidate.FieldPathPb | None) -> str:
    """`texts[3].label`, `metadata["key"]`: the field as people write it."""
    parts: list[str] = []
    for element in path.elements if path else ():
        parts.append(f".{element.field_name}" if parts else element.field_name)
        if (subscript := element.subscript) is not None:
            value = subscript.value
            parts.append(f"[{value!r}]" if isinstance(value, str) else f"[{value}]")
    return "".join(parts)
