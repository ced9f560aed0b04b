"""One tenant's journey through the SDK: create, upload, train, evaluate."""

from __future__ import annotations

import time
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from demo.measure import latency_p50_ms, quality, rated
from demo.recipes import Recipe
from smile import Client, Exactness, TrainingJob
from smile.cli.progress import JobView
from smile.errors import Internal

BACKBONE = "minilm"
DATASET = "news"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out of one tenant's journey; this is a row of the final table."""

    tenant: str
    task: str
    pet: str
    measure: str
    accuracy: float
    held_out: int
    trained_on: int
    create_seconds: float
    train_seconds: float
    vplm_bytes: int
    full_model_bytes: int
    latency_p50_ms: float
    version: str


class Journey:
    """A tenant with its own key. Call the methods in their order."""

    def __init__(self, recipe: Recipe, client: Client, console: Console) -> None:
        self.recipe = recipe
        self._client = client
        self._console = console
        self._create_s = 0.0

    def create(self) -> None:
        """A vPLM, and the rows to train it on."""
        recipe = self.recipe
        started = time.perf_counter()
        made = self._client.create_vplm(
            recipe.vplm, backbone=BACKBONE, pet=recipe.pet, labels=recipe.labels
        )
        self._create_s = time.perf_counter() - started
        rows = [{"text": document.text, "label": document.topic} for document in recipe.rows]
        dataset = self._client.upload_dataset(DATASET, rows)
        self._say(
            f"{made.name} created in {self._create_s * 1e3:.0f} ms; {len(rows)} rows uploaded "
            f"({dataset.size_bytes / 1e6:.1f} MB)"
        )

    def train(self) -> TrainingJob:
        """Queue the job."""
        return self._client.train(self.recipe.vplm, DATASET, **self.recipe.training)

    def wait(self, job: TrainingJob) -> TrainingJob:
        """Follow the job to its end. Raises `JobFailed`."""
        self._say(f"training for: {self.recipe.task}")
        with JobView(self._console) as view:
            return self._client.wait(job, on_event=view.show)

    def evaluate(self, job: TrainingJob) -> Outcome:
        """Ask the new version about texts it has not seen."""
        recipe = self.recipe
        answered = self._client.infer(recipe.vplm, recipe.held_out[0].text, truncate=True)
        if answered.version != job.version:
            raise Internal(f"{answered.version} answered, not the trained {job.version}")
        accuracy = quality(self._client, recipe)
        self._say(f"{accuracy:.1%} of {len(recipe.held_out)} {recipe.measure}")
        usage = next(row for row in self._client.usage().vplms if row.name == job.vplm)
        assert job.start_time is not None and job.end_time is not None
        return Outcome(
            tenant=recipe.tenant,
            task=recipe.task,
            pet=str(recipe.pet.kind),
            measure=recipe.measure,
            accuracy=accuracy,
            held_out=len(recipe.held_out),
            trained_on=len(recipe.rows),
            create_seconds=self._create_s,
            train_seconds=(job.end_time - job.start_time).total_seconds(),
            vplm_bytes=usage.serving_bytes,
            full_model_bytes=usage.full_model_bytes,
            latency_p50_ms=latency_p50_ms(self._client, recipe),
            version=job.version,
        )

    def rate(self, exactness: Exactness) -> tuple[float, float]:
        """As `demo.measure.rated`."""
        return rated(self._client, self.recipe, exactness)

    def _say(self, sentence: str) -> None:
        text = Text(f"{self.recipe.tenant:<9}", style="bold")
        self._console.print(text.append(f" {sentence}", style="not bold"))
