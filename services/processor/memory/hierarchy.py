"""The memory hierarchy of one processor: object store → local disk → host slabs → device slots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from services.processor.memory.arena import (
    GRANULE_BYTES,
    Copying,
    DeviceSlabs,
    HostSlabs,
    Pinned,
    SideStream,
    device_named,
)
from services.processor.memory.policy import LeastRecentlyUsed, Policy, S3Fifo
from services.processor.memory.residency import InPlace, Memory
from services.processor.memory.space import Space
from services.processor.memory.spill import FULL_SHARE, Spill
from services.processor.options import Device, Eviction, MemoryOptions
from services.processor.requests import ModuleKey
from smile.limits import GIB, MIB
from smile.model.loaded import LoadedModule

HOST_SLAB_BYTES = 1 * GIB  # addresses; memory is taken row by row
DEVICE_SLAB_BYTES = 32 * MIB
DEVICE_SLABS_MIN = 32  # where the device has little memory, slabs are smaller

MakePolicy: TypeAlias = Callable[[], Policy[ModuleKey]]

POLICIES: dict[Eviction, MakePolicy] = {
    Eviction.S3_FIFO: S3Fifo,
    Eviction.LRU: LeastRecentlyUsed,
}


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Both tiers of memory, the host's slabs to write to, and what local disk keeps."""

    memory: Memory[LoadedModule]
    host: HostSlabs
    spill: Spill[LoadedModule]

    @classmethod
    def build(cls, options: MemoryOptions, device: Device) -> Hierarchy:
        """Memory for modules, all of it free."""
        return cls._cuda(options) if device is Device.CUDA else cls._cpu(options)

    @classmethod
    def _cpu(cls, options: MemoryOptions) -> Hierarchy:
        """The device's slots are only counted: it reads the host's rows."""
        host = HostSlabs()
        device = Space(
            options.device_bytes_max, slab_bytes=options.device_bytes_max, granule=GRANULE_BYTES
        )
        policy = POLICIES[options.eviction]
        space = _host_space(options, host)
        mover = InPlace[LoadedModule]()
        memory = Memory(space, device, policy(), policy(), mover, options.pinned_share)
        return cls(memory, host, _spill(options, space))

    @classmethod
    def _cuda(cls, options: MemoryOptions) -> Hierarchy:
        """Rows are copied from pinned host memory into slabs on the GPU. Not measured yet."""
        host, on = HostSlabs(Pinned()), device_named(Device.CUDA.value)
        slabs = DeviceSlabs(on)
        device = Space(
            options.device_bytes_max,
            slab_bytes=min(DEVICE_SLAB_BYTES, options.device_bytes_max // DEVICE_SLABS_MIN),
            granule=GRANULE_BYTES,
            backing=slabs,
        )
        policy = POLICIES[options.eviction]
        space = _host_space(options, host)
        mover = Copying[LoadedModule](slabs.rows, SideStream(on))
        memory = Memory(space, device, policy(), policy(), mover, options.pinned_share)
        return cls(memory, host, _spill(options, space))


def _host_space(options: MemoryOptions, slabs: HostSlabs) -> Space:
    return Space(
        options.host_bytes_max, slab_bytes=HOST_SLAB_BYTES, granule=GRANULE_BYTES, backing=slabs
    )


def _spill(options: MemoryOptions, host: Space) -> Spill[LoadedModule]:
    full_bytes = int(FULL_SHARE * host.bytes_max)
    return Spill(options.disk_folder, options.disk_bytes_max, lambda: host.nbytes >= full_bytes)
