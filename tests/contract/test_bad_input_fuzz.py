"""Nonsense for every unary RPC, made from its contract: declared codes only, and nothing breaks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smile.client.loop import LoopThread
from smile.rpc.principal import Role
from tests.contract.every_rpc import METHODS, NAMES, REQUESTS, UNARY_METHODS, Outcome, Path, roles
from tests.contract.harmless import TEXT, Scene, scene
from tests.contract.sdk_world import silent_logs

EXAMPLES_PER_RPC = 14
DECLARED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAUTHENTICATED,  # ResolveApiKey, of keys that are none
}
OWNERS = ("acme", "rival", "-", "nobody", "..", "")
PARTS = ("vplms/topic", "vplms/absent", "datasets/rows", "trainingJobs/j0", "apiKeys/k0")
NUMBERS = (0, 1, -1, 2, 127, 1000, 1001, 2**31 - 1, -(2**31))
LONG_NUMBERS = (*NUMBERS, 2**32, 2**63 - 1, -(2**63))
TEXTS = ("", "a", "topic", "serving", "-", "\x00", "\n", "🙂", "x" * 300, "text", "0" * 64)
IDS = ("", "x", "00000000-0000-4000-8000-000000000000")


def names() -> st.SearchStrategy[str]:
    whole = st.builds(
        lambda owner, part, tail: f"tenants/{owner}{part}{tail}",
        st.sampled_from(OWNERS),
        st.sampled_from(("", *(f"/{part}" for part in PARTS))),
        st.sampled_from(("", "/versions/1", "/versions/99", "/", "\n")),
    )
    return whole | st.sampled_from(("backbones/toy", "backbones/x", *TEXTS))


def text(entry: FieldDescriptor) -> st.SearchStrategy[str]:
    if entry.full_name in NAMES or entry.name in ("name", "parent", "backbone"):
        return names()
    if entry.name == "request_id":
        return st.uuids(version=4).map(str) | st.sampled_from(IDS)
    return st.sampled_from(TEXTS) | st.text(max_size=20)


def scalar(entry: FieldDescriptor) -> st.SearchStrategy[Any]:
    """Values of one field: mostly the awkward ones."""
    kind = FieldDescriptor
    if entry.type == kind.TYPE_STRING:
        return text(entry)
    if entry.enum_type is not None:
        numbers = [value.number for value in entry.enum_type.values]
        return st.sampled_from([*numbers, 99, -1])
    plain: dict[int, st.SearchStrategy[Any]] = {
        kind.TYPE_DOUBLE: st.sampled_from((0.0, -0.0, 0.5, 1.0)) | st.floats(width=32),
        kind.TYPE_FLOAT: st.floats(width=32),
        kind.TYPE_BOOL: st.booleans(),
        kind.TYPE_BYTES: st.binary(max_size=20),
        kind.TYPE_INT64: st.sampled_from(LONG_NUMBERS),
    }
    return plain.get(entry.type, st.sampled_from(NUMBERS))


def value(entry: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if entry.message_type is not None:
        one = messages(entry.message_type, depth + 1)
    else:
        one = scalar(entry)
    if not entry.is_repeated:
        return one
    if entry.message_type is not None and entry.message_type.GetOptions().map_entry:
        key, held = entry.message_type.fields
        return st.dictionaries(scalar(key), value(held, depth + 1), max_size=2)
    return st.lists(one, max_size=3)


def messages(descriptor: Descriptor, depth: int = 0) -> st.SearchStrategy[Message]:
    """Messages of a type, any of their fields left out."""
    make = message_factory.GetMessageClass(descriptor)
    if depth > 4:
        return st.just(make())
    fields = {entry.name: value(entry, depth) for entry in descriptor.fields}
    return st.fixed_dictionaries({}, optional=fields).map(lambda chosen: built(make, chosen))


def built(make: Any, chosen: dict[str, Any]) -> Message:
    """The message, without what no message of the type can hold."""
    try:
        made: Message = make(**chosen)
    except (ValueError, TypeError):
        made = make()
        for name, held in chosen.items():
            try:
                made.MergeFrom(make(**{name: held}))
            except (ValueError, TypeError):
                continue
    return made


def places(descriptor: Descriptor, at: Path = ()) -> Iterator[tuple[Path, FieldDescriptor]]:
    """Every field of a message that holds values, and how to get there."""
    for entry in descriptor.fields:
        where = (*at, entry.name)
        if entry.message_type is None or entry.is_repeated:
            yield where, entry
        elif len(where) < 4:
            yield from places(entry.message_type, where)


def changes(method: str) -> st.SearchStrategy[list[tuple[Path, Any]]]:
    """A few fields of a request, and what to put there."""
    found = list(places(METHODS[method].input_type))
    if not found:
        return st.just([])
    one = st.sampled_from(found).flatmap(
        lambda place: st.tuples(st.just(place[0]), value(place[1], 0))
    )
    return st.lists(one, min_size=1, max_size=3)


def changed(request: Message, wanted: list[tuple[Path, Any]]) -> Message:
    for where, new in wanted:
        target: Any = request
        for part in where[:-1]:
            target = getattr(target, part)
        target.ClearField(where[-1])
        target.MergeFrom(built(type(target), {where[-1]: new}))
    return request


class World:
    """A platform on a loop of its own, since examples come from outside of one."""

    def __init__(self, loop: LoopThread, place: Scene) -> None:
        self._loop = loop
        self.place = place

    def call(self, method: str, request: Message) -> Outcome:
        allowed = roles(METHODS[method])
        keys: dict[str, Any] = {"key": self.place.acme.key}
        if Role.TENANT not in allowed and Role.OPERATOR in allowed:
            keys = {"key": self.place.platform.operator_key}
        elif Role.TENANT not in allowed:
            keys = {"key": self.place.platform.service_key, "tenant": "acme"}
        return self._loop.call(lambda _: self.place.calls.call(method, request, **keys))

    def neighbour_is_well(self) -> None:
        answer = self._loop.call(lambda _: self.place.neighbour.infer("topic", TEXT))
        assert answer.digest == self.place.golden.digest


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    loop = LoopThread()
    context = scene()
    with silent_logs():
        place = loop.call(lambda _: context.__aenter__())
        try:
            yield World(loop, place)
        finally:
            loop.call(lambda _: context.__aexit__(None, None, None))
            loop.close()


@pytest.mark.parametrize("method", UNARY_METHODS)
def test_nonsense_gets_a_declared_code(world: World, method: str) -> None:
    @settings(
        max_examples=EXAMPLES_PER_RPC,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(request=messages(METHODS[method].input_type))
    def tried(request: Message) -> None:
        outcome = world.call(method, request)
        assert outcome.code in DECLARED, (outcome, request)
        if outcome.error is None:
            return
        assert outcome.reason.isupper() and 5 <= len(outcome.message) <= 1000, outcome
        assert "Traceback" not in outcome.message and "rival_" not in outcome.message

    tried()
    world.neighbour_is_well()


@pytest.mark.parametrize("method", [name for name in UNARY_METHODS if name in REQUESTS])
def test_good_requests_with_some_nonsense_get_a_declared_code(world: World, method: str) -> None:
    """These come further in than nonsense alone."""

    @settings(
        max_examples=EXAMPLES_PER_RPC,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(wanted=changes(method))
    def tried(wanted: list[tuple[Path, Any]]) -> None:
        request = REQUESTS[method](world.place.acme, b"")
        assert isinstance(request, Message)
        outcome = world.call(method, changed(request, wanted))
        assert outcome.code in DECLARED, (outcome, wanted)

    tried()
    world.neighbour_is_well()
