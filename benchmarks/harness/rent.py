"""Registering a vPLM with the processor: after it, the vPLM is in memory and answers at once."""

from __future__ import annotations

from smile import AsyncClient


async def register(client: AsyncClient, vplm: str) -> None:
    """Rent a processor for a vPLM; comes back when its module is loaded."""
    await client.rent(vplm, wait=True)
