"""`python -m demo.adapter`: a public adapter, and what a tenant with a handful of rows gains by it.

As in the paper's example, where BERT with a public adapter for biomedical texts is trained further
for ChemProt: here a publisher's module has learned BBC news topics from half of the documents, the
operator offers it, and a tenant with three documents a topic, under labels of its own, begins with
it. The same rows and steps from fresh weights are beside it. The last line on standard output is
one JSON object.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

import smile
from demo import news
from demo.__main__ import platform
from demo.journey import BACKBONE
from demo.news import TOPICS, Document
from demo.recipes import TOKENS_MAX
from smile import Classification, Client, TrainOptions
from smile.cli.output import console
from smile.embedded import PlatformState
from smile.embedded.directory import DataDirectory
from smile.embedded.keys import load_secrets

ADAPTER, PET = "news", smile.Pfeiffer(rank=24, first_layer=4)
OWN_LABELS = {
    "business": "work",
    "politics": "work",
    "tech": "work",
    "entertainment": "leisure",
    "sport": "leisure",
}
ROWS_PER_TOPIC = 3
LICENSE = "CC-BY-4.0"


@dataclass(frozen=True, slots=True)
class Corpus:
    """The publisher's half, the tenant's few, and what neither trains on."""

    published: tuple[Document, ...]
    own: tuple[Document, ...]
    held_out: tuple[Document, ...]


def corpus() -> Corpus:
    """BBC news, split by document."""
    texts = news.load_news()
    half = len(texts.train) // 2
    others = texts.train[half:]
    own = [
        document
        for topic in TOPICS
        for document in [each for each in others if each.topic == topic][:ROWS_PER_TOPIC]
    ]
    return Corpus(texts.train[:half], tuple(own), texts.held_out)


def main() -> int:
    out = console()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="smile-demo-") as folder, ExitStack() as stack:
        texts = corpus()
        state = stack.enter_context(platform(Path(folder)))
        secrets = load_secrets(DataDirectory.at(Path(state.data)).secrets_file)
        operator = stack.enter_context(_client(state, secrets.operator_key))
        press, tenant = (
            stack.enter_context(_client(state, operator.create_tenant(name).key))
            for name in ("press", "tenant")
        )
        published = publish(out, operator, press, texts)
        gained = compare(out, tenant, texts)
    result = {**published, **gained, "seconds": round(time.monotonic() - started, 1)}
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


def publish(out: Console, operator: Client, press: Client, texts: Corpus) -> dict[str, object]:
    """Train on half of the documents, and offer what was learned."""
    press.create_vplm("topics", backbone=BACKBONE, pet=PET, labels=TOPICS)
    rows = [{"text": document.text, "label": document.topic} for document in texts.published]
    press.upload_dataset("half", rows)
    job = press.wait(press.train("topics", "half", **_training(epochs=2, validation_ratio=0.05)))
    press.set_alias("topics", "public", press.version("topics").number)
    adapter = operator.publish_version(
        ADAPTER, job.version, description="Topics of BBC news", license=LICENSE
    )
    right = accuracy(press, "topics", texts.held_out, {topic: topic for topic in TOPICS})
    out.print(
        f"{adapter.name}: trained on {len(rows)} documents, {right:.1%} of "
        f"{len(texts.held_out)} held-out ones right under its own five labels"
    )
    return {"adapter_rows": len(rows), "adapter_accuracy": round(right, 4)}


def compare(out: Console, tenant: Client, texts: Corpus) -> dict[str, object]:
    """The tenant's rows, once from the adapter and once from fresh weights."""
    labels = sorted(set(OWN_LABELS.values()))
    rows = [{"text": each.text, "label": OWN_LABELS[each.topic]} for each in texts.own]
    tenant.upload_dataset("own", rows)
    began = time.perf_counter()
    tenant.derive_vplm("derived", ADAPTER, labels=labels)
    derived_s = time.perf_counter() - began
    tenant.create_vplm("scratch", backbone=BACKBONE, pet=PET, labels=labels)
    right = {}
    for vplm in ("derived", "scratch"):
        job = tenant.wait(tenant.train(vplm, "own", **_training(epochs=8)))
        right[vplm] = accuracy(tenant, vplm, texts.held_out, OWN_LABELS)
        out.print(
            f"{vplm}: {len(rows)} rows, {job.progress.steps_total} steps, "
            f"{right[vplm]:.1%} of {len(texts.held_out)} held-out documents right"
        )
    source = tenant.version("derived", 1).derived_from
    assert source is not None
    out.print(f"derived in {derived_s * 1e3:.0f} ms from {source.name}")
    return {
        "own_rows": len(rows),
        "derived_accuracy": round(right["derived"], 4),
        "scratch_accuracy": round(right["scratch"], 4),
        "derive_seconds": round(derived_s, 3),
    }


def accuracy(
    client: Client, vplm: str, documents: Sequence[Document], labels: dict[str, str]
) -> float:
    """The share of documents that get their topic's label."""
    texts = [document.text for document in documents]
    predictions = client.infer_many(vplm, texts, truncate=True, top_k=1)
    right = 0
    for document, prediction in zip(documents, predictions, strict=True):
        assert isinstance(prediction.result, Classification)
        right += prediction.result.label == labels[document.topic]
    return right / len(documents)


def _training(*, epochs: int, validation_ratio: float = 0.0) -> TrainOptions:
    options = TrainOptions(
        epochs=epochs, learning_rate=1e-3, batch_size=8, tokens_max=TOKENS_MAX, seed=7
    )
    if validation_ratio:
        options["validation_ratio"] = validation_ratio
        options["batch_size"] = 32
    return options


def _client(state: PlatformState, key: str) -> Client:
    return Client(key, endpoints=state.endpoints)


if __name__ == "__main__":
    sys.exit(main())
