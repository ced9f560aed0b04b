"""`python -m demo`: the platform end to end on this machine, on real text, leaving nothing behind.

The last line on standard output is one JSON object.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.text import Text

from demo import news
from demo.journey import BACKBONE, Journey, Outcome
from demo.measure import MemoryWatch
from demo.recipes import Recipe, recipes
from smile import Backbone, Client, Exactness, SmileError
from smile.cli.output import console, size, table
from smile.config import inherited_environment
from smile.embedded import PlatformOptions, PlatformState, start, stop
from smile.embedded.directory import DataDirectory
from smile.embedded.keys import load_secrets

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
CLI_TIMEOUT_S = 60


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    out = console()
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="smile-demo-") as folder, ExitStack() as stack:
            result = demonstrate(Path(folder), out, stack, started)
    except SmileError as error:
        out.print(Text(f"the demonstration failed: {error.message} ({error.reason})"))
        return EXIT_FAILED
    except KeyboardInterrupt:
        out.print("interrupted; everything has been stopped")
        return EXIT_INTERRUPTED
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


def demonstrate(folder: Path, out: Console, stack: ExitStack, started: float) -> dict[str, object]:
    """The whole story; what `stack` holds is closed by the caller. Gives the last line."""
    texts = news.load_news()
    out.print(
        f"BBC news: {texts.read} documents, {texts.repeated} repeated ones left out; "
        f"{len(texts.train)} to train on, {len(texts.held_out)} held out "
        f"(split by document, seed {news.SEED}; a text is the first {news.WORDS_MAX} words)"
    )
    out.print("starting the platform: redis, storage, creator, trainer, processor")
    state = stack.enter_context(platform(folder))
    out.print(f"ready after {time.monotonic() - started:.1f} s")
    memory = stack.enter_context(MemoryWatch(state.supervisor_pid))
    keys, backbone = create_tenants(state, recipes(texts))
    journeys = [
        Journey(recipe, stack.enter_context(_client(state, key)), out)
        for recipe, key in zip(recipes(texts), keys, strict=True)
    ]
    for journey in journeys:
        journey.create()
    jobs = [journey.train() for journey in journeys]
    ended = [journey.wait(job) for journey, job in zip(journeys, jobs, strict=True)]
    outcomes = [journey.evaluate(job) for journey, job in zip(journeys, ended, strict=True)]
    infer_by_command(out, state, journeys[0].recipe, keys[0])
    show(out, outcomes)
    return {
        **summary(outcomes, backbone),
        **look_up(out, journeys[0]),
        "seconds": round(time.monotonic() - started, 1),
        "rss_gib": round(memory.bytes_max / 2**30, 2),
    }


@contextmanager
def platform(folder: Path) -> Iterator[PlatformState]:
    """A platform on free ports that ends with this process, even if that is killed."""
    data = folder / "data"
    os.environ.setdefault("SMILE_PROCESSOR_SKIP", f"{BACKBONE}=included")  # services inherit it
    try:
        yield start(PlatformOptions(data=data, port_base=0, leashed=True))
    finally:
        stop(data)


def create_tenants(state: PlatformState, wanted: tuple[Recipe, ...]) -> tuple[list[str], Backbone]:
    """A tenant per recipe, made with the operator's key; gives their own keys."""
    secrets = load_secrets(DataDirectory.at(Path(state.data)).secrets_file)
    with _client(state, secrets.operator_key) as operator:
        keys = [operator.create_tenant(recipe.tenant).key for recipe in wanted]
        return keys, operator.backbone(BACKBONE)


def infer_by_command(out: Console, state: PlatformState, recipe: Recipe, key: str) -> None:
    """The same question through the command line. Raises `CalledProcessError`."""
    text = recipe.held_out[0].text
    environment = {"SMILE_API_KEY": key, "SMILE_ENDPOINTS": state.endpoints}
    done = subprocess.run(
        [str(Path(sys.executable).parent / "smile"), "infer", recipe.vplm, text],
        env={**inherited_environment(), **environment},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        timeout=CLI_TIMEOUT_S,
    )
    out.print(Text(f"\n$ smile infer {recipe.vplm} '{' '.join(text.split()[:8])} ...'"))
    out.print(Text(done.stdout.rstrip()))


def look_up(out: Console, journey: Journey) -> dict[str, object]:
    """The same texts once more, exact and materialised: a small network over trigrams in place of
    the lower layers, its rows kept as they are asked for again."""
    rated = {exactness: journey.rate(exactness) for exactness in Exactness for _ in range(2)}
    (exact, exact_per_s), (found, found_per_s) = (rated[one] for one in Exactness)
    out.print(
        f"materialised, the lower layers looked up: {found:.1%} right of {exact:.1%} exact, "
        f"{found_per_s / exact_per_s:.2f} times as many texts a second ({found_per_s:.0f})"
    )
    return {
        "accuracy_materialized": round(found, 4),
        "speedup_materialized": round(found_per_s / exact_per_s, 2),
    }


def show(out: Console, outcomes: list[Outcome]) -> None:
    """The table at the end."""
    columns = ["tenant", "task", "pet", "accuracy>", "held out>", "trained on>", "training>"]
    columns += ["stored>", "full model>", "share>", "created in>", "latency p50>"]
    rows = [
        [
            row.tenant, row.task, row.pet, f"{row.accuracy:.1%}", str(row.held_out),
            str(row.trained_on), f"{row.train_seconds:.1f} s", size(row.vplm_bytes),
            size(row.full_model_bytes), f"{row.vplm_bytes / row.full_model_bytes:.2%}",
            f"{row.create_seconds * 1e3:.0f} ms", f"{row.latency_p50_ms:.1f} ms",
        ]
        for row in outcomes
    ]  # fmt: skip
    out.print(table(columns, rows))


def summary(outcomes: list[Outcome], backbone: Backbone) -> dict[str, object]:
    """The last line: the five-topic model's accuracy first, then everything in the table."""
    return {
        "accuracy": round(outcomes[0].accuracy, 4),
        "bytes_per_vplm": round(sum(row.vplm_bytes for row in outcomes) / len(outcomes)),
        "backbone_bytes": backbone.shape.bytes,
        "create_seconds": round(max(row.create_seconds for row in outcomes), 3),
        "latency_p50_ms": round(outcomes[0].latency_p50_ms, 1),
        "split_seed": news.SEED,
        "tenants": [asdict(row) for row in outcomes],
    }


def _client(state: PlatformState, key: str) -> Client:
    return Client(key, endpoints=state.endpoints)


if __name__ == "__main__":
    sys.exit(main())
