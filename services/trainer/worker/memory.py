"""Keeping a worker's memory near what it uses: tensors of many sizes leave holes in the heap."""

from __future__ import annotations

import ctypes
import os

from smile.limits import MIB

# Of glibc's <malloc.h>.
M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -8, -3, -1
OWN_PAGES_BYTES = 32 * MIB  # the most glibc takes; 4 MiB halves the peak, and takes far longer
KEPT_FREE_BYTES = 128 * MIB
# Splinters of aligned blocks, kept apart for small requests, part the large holes they lie between:
# without this a training's heap grows to three times what it uses. Read at a process's start alone.
TUNABLES = "glibc.malloc.tcache_count=0"


def tame_heap() -> None:
    """Bounds what freed tensors leave behind. All threads take from one heap, so that each reuses
    what another freed; the largest tensors get pages of their own, given back at once.

    To be called before threads start. Does nothing where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)
        mallopt(M_MMAP_THRESHOLD, OWN_PAGES_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_FREE_BYTES)


def tame_children() -> None:
    """Has processes that are started from now on keep no freed blocks apart."""
    os.putenv("GLIBC_TUNABLES", TUNABLES)


def release_free_memory() -> None:
    """Returns free pages inside the heap to the system; a few milliseconds."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
