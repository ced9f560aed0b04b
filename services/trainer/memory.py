"""Keeping a worker's memory near what it uses: tensors of many sizes leave holes in the heap."""

from __future__ import annotations

import ctypes

M_ARENA_MAX = -8  # of glibc's <malloc.h>


def share_one_heap() -> None:
    """Lets all threads take from one heap, so that each reuses what another freed.

    To be called before threads start. Does nothing where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)


def release_free_memory() -> None:
    """Returns free pages inside the heap to the system; a few milliseconds."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
