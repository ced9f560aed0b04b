"""What the processor has done since it started, and how full it is."""

from __future__ import annotations

from dataclasses import dataclass

from services.processor.dispatch import Level
from services.processor.requests import Batch
from smile.names import BackboneName
from smile.resources import ProcessorStats


@dataclass(slots=True)
class Counters:
    """Counts since start. For use on the event loop only."""

    requests: int = 0
    texts: int = 0
    batches: int = 0
    batch_texts: int = 0
    batch_vplms: int = 0
    compute_s: float = 0.0

    def asked(self, texts: int) -> None:
        """A request was admitted."""
        self.requests += 1
        self.texts += texts

    def computed(self, batch: Batch, compute_s: float) -> None:
        """A batch left the device."""
        self.batches += 1
        self.batch_texts += batch.texts
        self.batch_vplms += len(batch.parts)
        self.compute_s += compute_s

    def stats(
        self, level: Level, *, backbones: tuple[str, ...], queue_texts_max: int, refused: int
    ) -> ProcessorStats:
        """Everything `GetStats` tells."""
        batches = max(self.batches, 1)
        return ProcessorStats(
            backbones=tuple(str(BackboneName(name)) for name in backbones),
            queue_texts=level.queue_texts,
            queue_texts_max=queue_texts_max,
            modules_resident=level.host.modules,
            modules_bytes=level.host.nbytes,
            modules_bytes_max=level.host.bytes_max,
            requests_total=self.requests,
            texts_total=self.texts,
            batches_total=self.batches,
            requests_refused_total=refused,
            module_hits_total=level.host.counters.hits,
            module_loads_total=level.host.counters.loads,
            module_evictions_total=level.host.counters.evictions,
            batch_texts_mean=self.batch_texts / batches,
            batch_vplms_mean=self.batch_vplms / batches,
            compute_seconds_total=self.compute_s,
        )
