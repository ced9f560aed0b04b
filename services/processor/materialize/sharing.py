"""Rows that processors tell one another, through a Redis stream: a cache, which may be lost.

One stream for each local encoder and form of rows. An entry has keys, counts and rows of some
n-grams, which at least as many tenants asked as the teller's rules want, and a digest of all.
Entries of one's own are skipped. What Redis loses comes back: who finds the stream gone tells all
it has.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from redis.typing import EncodableT, FieldT

from smile.errors import SmileError
from smile.logs import get_logger
from smile.model.ngram_rows import RowFormat
from smile.representations.rows import RowEncoder
from smile.representations.traffic import Weighed
from smile.store.redis import Redis, reaching_redis

ENTRY_ROWS_MAX = 256  # half a megabyte at 384 numbers a view
ENTRIES_MAX = 1_024  # kept in the stream, about
ENTRIES_READ = 16  # at a time
FIRST = "0-0"

Fields: TypeAlias = dict[bytes, bytes]
Streams: TypeAlias = list[tuple[bytes, list[tuple[bytes, Fields]]]]


@dataclass(frozen=True, slots=True)
class Shared:
    """Rows of some n-grams.

    Attributes:
        weighed: Keys and counts, the most frequent first.
        rows: [n, row_bytes] uint8.
    """

    weighed: Weighed
    rows: NDArray[np.uint8]

    @classmethod
    def of(
        cls, keys: NDArray[np.int64], counts: NDArray[np.float32], rows: NDArray[np.uint8]
    ) -> Shared:
        """In whatever order."""
        order = np.argsort(-counts, kind="stable")
        return cls(Weighed(keys[order], counts[order]), rows[order])

    def parts(self, most: int) -> Iterator[Shared]:
        """At most so many rows each."""
        for start in range(0, len(self.weighed), most):
            part = slice(start, start + most)
            weighed = Weighed(self.weighed.keys[part], self.weighed.counts[part])
            yield Shared(weighed, self.rows[part])


class Sharing:
    """What one processor tells and hears of one backbone's rows.

    Args:
        redis: A client that gives bytes; closed with this.
        encoder: Computes rows, to compare: what was heard must be the same, to the bit.
        row_format: See `use`.
    """

    def __init__(self, redis: Redis, encoder: RowEncoder, row_format: RowFormat) -> None:
        self._redis = redis
        self._encoder = encoder
        self._me = secrets.token_hex(8)
        self._format = row_format
        self._last = FIRST

    def use(self, row_format: RowFormat) -> None:
        """Tell and hear of rows in this form from now on."""
        if row_format != self._format:
            self._format, self._last = row_format, FIRST

    @property
    def _stream(self) -> str:
        return f"smile:rows:{self._encoder.origin.encoder_digest}:{self._format.dtype}"

    async def empty(self) -> bool:
        """Whether nobody has told anything. Raises `Unavailable`."""
        with reaching_redis():
            return not await self._redis.exists(self._stream)

    async def tell(self, shared: Shared) -> None:
        """Tell the other processors. Raises `Unavailable`."""
        for part in shared.parts(ENTRY_ROWS_MAX):
            entry = _encoded(part, self._me)
            with reaching_redis():
                await self._redis.xadd(self._stream, entry, maxlen=ENTRIES_MAX, approximate=True)

    async def heard(self) -> Sequence[Shared]:
        """What others told since the last time, a part of it where that is much. Raises
        `Unavailable`.
        """
        with reaching_redis():
            given = await self._redis.xread({self._stream: self._last}, count=ENTRIES_READ)
        found = []
        for _, entries in cast("Streams", given):
            for number, fields in entries:
                self._last = number.decode()
                if fields.get(b"from") == self._me.encode():
                    continue
                if (shared := self._decoded(fields)) is not None:
                    found.append(shared)
        return found

    async def close(self) -> None:
        await self._redis.aclose()

    def _decoded(self, fields: Fields) -> Shared | None:
        """None for what is damaged, or has rows that are not those computed here."""
        try:
            keys = np.frombuffer(fields[b"keys"], np.int64)
            counts = np.frombuffer(fields[b"counts"], np.float32)
            flat = np.frombuffer(fields[b"rows"], np.uint8)
            rows = flat.reshape(len(keys), self._format.row_bytes)
            whole = 1 <= len(keys) == len(counts) <= ENTRY_ROWS_MAX and keys.min() >= 0
            usable = whole and bool(np.isfinite(counts).all())
            if not usable or fields[b"digest"].decode() != _digest(keys, counts, rows):
                raise ValueError("its digest is another")
            one = secrets.randbelow(len(keys))
            if not np.array_equal(
                self._encoder.packed(keys[one : one + 1], self._format)[0], rows[one]
            ):
                raise ValueError("its rows are not those that this machine computes")
        except (LookupError, ValueError, SmileError) as error:
            get_logger().warning("rows told by another processor are left out", why=str(error))
            return None
        return Shared.of(keys, counts, rows)


def _encoded(shared: Shared, me: str) -> dict[FieldT, EncodableT]:
    keys, counts = shared.weighed.keys, shared.weighed.counts.astype(np.float32)
    return {
        "from": me,
        "keys": keys.tobytes(),
        "counts": counts.tobytes(),
        "rows": np.ascontiguousarray(shared.rows).tobytes(),
        "digest": _digest(keys, counts, shared.rows),
    }


def _digest(keys: NDArray[np.int64], counts: NDArray[np.float32], rows: NDArray[np.uint8]) -> str:
    digest = hashlib.sha256()
    for part in (keys, counts, rows):
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()
