"""Local encoders under either policy for missing n-grams, served without a processor.

Encoders are read from the folder that `SMILE_BENCH_ENCODERS` names, files of `smile backbones
distill`; the one that comes with SMILE is always among them. A smaller table is the first rows of a
larger one, which lie in order of frequency.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.json_types import Json
from benchmarks.harness.standin import EVERYTHING, backbone
from smile.errors import FailedPrecondition
from smile.model import weights
from smile.model.answers import Output
from smile.model.batch import MixedBatch
from smile.model.batched import BatchedEngine
from smile.model.kernels.rows import own_row
from smile.model.loaded import Decoder, LoadedModule
from smile.model.materialized import LookedUp, NoRows, RowView
from smile.model.ngram_rows import RowDtype, RowFormat, RowStores
from smile.model.skip import artifact
from smile.model.skip.artifact import EncoderFile
from smile.model.skip.distill.settings import DistillSettings
from smile.model.skip.included import included_for
from smile.model.skip.policy import MissPolicy
from smile.model.skip.rows import EncoderRows
from smile.model.specs import ModuleSpec
from smile.representations import build
from smile.representations.build import TableWish
from smile.representations.fallback import KINDS, under
from smile.representations.keys import bigrams_of, keys_of_texts, unigrams_of
from smile.representations.snapshot import Table

FOLDER_VARIABLE = "SMILE_BENCH_ENCODERS"
INCLUDED = "included"
BOUNDARY_MAX = 4  # of encoders that are compared: modules begin there


@dataclass(frozen=True, slots=True)
class Encoder:
    """One encoder to measure.

    Attributes:
        name: Its file's.
    """

    name: str
    file: EncoderFile
    rows: EncoderRows

    @classmethod
    def of(cls, name: str, file: EncoderFile) -> Encoder:
        return cls(name, file, EncoderRows.of(file, backbone()))

    @property
    def policy(self) -> MissPolicy:
        """What it was distilled for."""
        return self.rows.policy

    @property
    def default(self) -> bool:
        """Whether it is what distils where nothing is said, but for how long."""
        return self.file.facts.form == DistillSettings(3).form(backbone().shape)

    @property
    def learned_tokens(self) -> int:
        """In all epochs of the distillation that ended with it."""
        return self.file.facts.tokens * self.file.facts.epochs

    @property
    def facts(self) -> dict[str, Json]:
        """What tells it from others."""
        form = self.file.facts.form
        return {
            "encoder": self.name,
            "encoder_digest": self.file.digest,
            "encoder_bytes": self.file.bytes,
            "boundary": form.boundary,
            "kind": str(form.kind),
            "first": form.first,
            "middle": form.middle,
            "parameters": form.parameters,
            "learned_tokens": self.learned_tokens,
            "distilled_s": self.file.facts.seconds,
            "error_last_layer": self.file.facts.measures.get(
                f"error_layer_{backbone().shape.layers}"
            ),
        }

    def table(
        self,
        folder: Path,
        texts: Sequence[str],
        policy: MissPolicy,
        dtype: RowDtype = RowDtype.FLOAT16,
    ) -> Table:
        """All n-grams of the texts that the policy wants rows of; built where it is not there."""
        place = folder / f"{self.name}-{KINDS[policy]}-{dtype}-{len(texts)}"
        if not place.exists():
            wish = TableWish(self.format(dtype), EVERYTHING, self.rows.vocab, KINDS[policy])
            build.build(place, texts, ids_of, self.rows, self.rows.outside, wish)
        return Table.open(place)

    def format(self, dtype: RowDtype) -> RowFormat:
        """Of its rows."""
        return RowFormat(dtype, self.rows.origin.width)

    def entry_bytes(self, table: Table, policy: MissPolicy) -> float:
        """What one row of a table takes, its share of the index included."""
        return TableWish(table.format, EVERYTHING, self.rows.vocab, KINDS[policy]).entry_bytes


@dataclass(frozen=True, slots=True)
class First:
    """The rows of a smaller table: the first of a larger one's."""

    table: Table
    rows: int

    @property
    def stores(self) -> RowStores:
        return self.table.stores

    def find(self, keys: NDArray[np.int64]) -> NDArray[np.int32]:
        """See `smile.model.materialized.RowView`."""
        numbers = self.table.find(keys)
        numbers[numbers >= self.rows] = -1
        return numbers


@dataclass(frozen=True, slots=True)
class Standing:
    """An encoder and what is looked up before it computes; stands in for the layers below."""

    encoder: Encoder
    view: RowView

    @classmethod
    def over(cls, encoder: Encoder, policy: MissPolicy, rows: First) -> Standing:
        return cls(encoder, under(policy, rows))

    @classmethod
    def alone(cls, encoder: Encoder) -> Standing:
        """Every row is computed."""
        return cls(encoder, NoRows(encoder.format(RowDtype.FLOAT16)))

    def answer(self, engine: BatchedEngine, batch: MixedBatch) -> list[Output]:
        """Materialised answers of a batch."""
        lower = LookedUp.of(batch.different.packed, self.encoder.rows.encoder, self.view)
        return engine.run(batch, lower)


def encoders() -> Iterator[Encoder]:
    """All there are, by name, the one that comes with SMILE last.

    Raises:
        FailedPrecondition: the folder is not there, or has none.
        DataCorrupted: a file is no encoder.
    """
    if (named := os.environ.get(FOLDER_VARIABLE)) is not None:
        paths = sorted(Path(named).glob("*.safetensors"))
        if not paths:
            raise FailedPrecondition(f"{FOLDER_VARIABLE} names {named}, which has no encoder")
        for path in paths:
            yield Encoder.of(path.stem, artifact.read(path))
    found = included_for(backbone().digest)
    assert found is not None, "one comes with SMILE for this backbone"
    yield Encoder.of(INCLUDED, found[1])


def ids_of(texts: Sequence[str], /) -> list[list[int]]:
    """Token ids of each text."""
    return [text.ids for text in backbone().tokenizer.encode(texts, truncate=True)]


def loaded(engine: BatchedEngine, spec: ModuleSpec, data: bytes) -> LoadedModule:
    """A stored module in memory of its own."""
    decoder = Decoder(engine.backbone, engine.serving.embeddings.word.dtype)
    decoded = decoder.decode(spec, weights.decode(data, spec, engine.backbone.shape))
    return decoded.place([own_row(size) for size in decoded.row_bytes])


def hits(table: First, texts: Sequence[Sequence[int]], outside: int) -> dict[str, Json]:
    """Shares of all n-grams asked whose trigram is there, of the others whose bigram, and so on."""
    asked = keys_of_texts(texts, outside)
    shares: dict[str, Json] = {}
    missing = np.ones(len(asked), bool)
    for name, keys in (
        ("hit_trigram", asked),
        ("hit_bigram", bigrams_of(asked)),
        ("hit_unigram", unigrams_of(asked)),
    ):
        found = missing & (table.find(keys) >= 0)
        shares[name] = float(found.mean())
        missing &= ~found
    return shares
