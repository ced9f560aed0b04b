"""Loading and unloading over and over: does memory come back?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.harness.fleet import Callers, Member
from benchmarks.harness.json_types import Json
from benchmarks.harness.platforms import ProcessorProcess
from benchmarks.harness.rent import register

EVERY = 20
SETTLING = 0.25  # of the cycles, which are not judged


async def cycles(
    processor: ProcessorProcess,
    callers: Callers,
    members: Sequence[Member],
    count: int,
    done: Callable[[], None],
) -> dict[str, Json]:
    """Rent and release one member after the other, `count` times; resident memory along the way.

    The slope is that of a line through the later three quarters, in bytes a cycle.
    """
    rss: list[int] = []
    for number in range(count):
        member = members[number % len(members)]
        client = callers.client(member.tenant)
        await register(client, member.vplm)
        await client.release(member.vplm)
        if number % EVERY == 0:
            rss.append(processor.rss_bytes)
        done()
    judged = rss[int(SETTLING * len(rss)) :]
    slope = float(np.polyfit(np.arange(len(judged)) * EVERY, judged, 1)[0])
    return {
        "cycles": count,
        "cycle_slope_bytes": slope,
        "cycle_growth_bytes": judged[-1] - judged[0],
        "cycle_rss_mib": [value / 2**20 for value in rss],
    }
