"""How many bytes of received messages calls may hold at a time.

A message is counted from the moment it is whole, as the bytes it came in, until its call ends (a
message of a stream: until the next one is asked for). The parsed message and what a handler makes
of it live as long and are about twice as large again. Not counted is a message that is still
arriving: gRPC assembles it before anybody is asked.
"""

from __future__ import annotations

from smile.errors import Overloaded

RETRY_S = 0.5


class CallBytes:
    """The budget of one server. For use on the event loop only.

    Args:
        bytes_max: Of all messages held; a message may be as large.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self.held = 0

    def check(self) -> None:
        """Raises `Overloaded` if messages hold more than the budget."""
        if self.held > self._bytes_max:
            raise Overloaded(
                f"calls hold {self.held} bytes of messages, and at most {self._bytes_max} are held "
                f"at a time",
                reason="TOO_MANY_BYTES",
                metadata={"limit": str(self._bytes_max), "value": str(self.held)},
                retry_after=RETRY_S,
            )

    def holding(self, message: bytes) -> _Held:
        """Count a message while entered; `check` tells whether that is too much."""
        return _Held(self, len(message))


class _Held:
    """The bytes of one message, counted while entered."""

    __slots__ = ("_budget", "_bytes")

    def __init__(self, budget: CallBytes, nbytes: int) -> None:
        self._budget = budget
        self._bytes = nbytes

    def __enter__(self) -> None:
        self._budget.held += self._bytes

    def __exit__(self, *_: object) -> None:
        self._budget.held -= self._bytes
