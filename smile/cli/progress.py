"""A training job as it runs: a bar on a terminal, a line per phase and epoch elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from smile.cli.output import when
from smile.resources import JobState, TrainingEvent, TrainingJob

SHOWN_FIRST = (
    "validation_accuracy",
    "validation_macro_f1",
    "validation_f1",
    "validation_token_accuracy",
    "validation_recall_at_1",
    "validation_loss",
)


class JobView:
    """Shows events on a console while entered."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._metrics: dict[str, float] = {}
        self._said = ""

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description:12}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[facts]}"),
                TimeElapsedColumn(),
                console=self._console,
            )
            self._task = self._progress.add_task("queued", total=None, facts="")
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def show(self, event: TrainingEvent) -> None:
        """One event of the job."""
        self._metrics |= {metric.name: metric.value for metric in event.metrics}
        if event.job is not None:
            self._show_job(event.job)
        elif self._progress is not None and event.metrics:
            step = max(metric.step for metric in event.metrics)
            self._progress.update(self._task, completed=step, facts=self._facts())

    def _show_job(self, job: TrainingJob) -> None:
        running = job.state is JobState.RUNNING
        what = job.progress.phase if running and job.progress.phase else job.state
        if self._progress is not None:
            facts = _waits_for(job) or self._facts()
            self._progress.update(self._task, description=str(what), facts=facts)
            if job.progress.steps_total:
                self._progress.update(
                    self._task, completed=job.progress.step, total=job.progress.steps_total
                )
            return
        epoch = f", epoch {job.progress.epoch} of {job.progress.epochs_total}"
        line = f"{what}{epoch if job.progress.epoch else ''}"
        if line != self._said:
            self._said = line
            facts = _waits_for(job) or self._facts()
            self._console.print(Text(f"{line}  {facts}" if facts else line))

    def _facts(self) -> str:
        names = [name for name in ("train_loss", *SHOWN_FIRST) if name in self._metrics]
        return "  ".join(f"{name} {self._metrics[name]:.4f}" for name in names[:3])


def _waits_for(job: TrainingJob) -> str:
    """What a job in the queue waits for, as far as that is known."""
    if job.state is not JobState.QUEUED:
        return ""
    ahead = f"{job.queue_position} ahead" if job.queue_position else ""
    start = when(job.estimated_start_time)
    return "  ".join(each for each in (ahead, start and f"starts about {start}") if each)
