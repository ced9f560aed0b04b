"""Registering a vPLM with the processor: after it, the vPLM is in memory and answers at once."""

from __future__ import annotations

from smile import AsyncClient


async def register(client: AsyncClient, vplm: str) -> None:
    """Have the processor load a vPLM; comes back when it is loaded."""
    await client.infer(vplm, ("warm",))
