"""How much of a stream may be on its way: options for servers and channels alike.

gRPC would probe each connection for how much that should be, by a ping when data has come, at most
about ten a second. Where a thousand clients ask now and then, each over a connection of its own,
that is a ping and its answer for nearly every request, in both directions: a quarter of what such a
call costs (0.12 of 0.5 ms of processor time, both sides together). So the window is fixed, wide
enough for a chunk of what is uploaded and downloaded. Between services it is not: there are few
connections, over which modules come, and without the probe one took 0.8 ms longer to arrive.
"""

from __future__ import annotations

from smile.limits import CHUNK_BYTES_MAX

WINDOW_BYTES = CHUNK_BYTES_MAX
WINDOWS: tuple[tuple[str, int], ...] = (
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
)
