"""Writes `benchmarks/REPORT.md` and its plots from the recorded results: one command, no figures by
hand.

What was learned is prose, and lies in `benchmarks/story/NAME.md`; everything else here comes from
`benchmarks/results/NAME.json`, or `NAME.quick.json` where there is no full run (and says so).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.all import ENTRIES
from benchmarks.details import details, shown, table
from benchmarks.harness.json_types import Json
from benchmarks.harness.result import RESULTS, figures_of, read_result
from benchmarks.plots import PLOTS

FOLDER = Path(__file__).resolve().parent
STORY = FOLDER / "story"
REPORT = FOLDER / "REPORT.md"
MARKS = {True: "met", False: "**missed**", None: "not measured"}


@dataclass(frozen=True, slots=True)
class Chapter:
    """What is told of a benchmark besides its figures."""

    question: str
    method: str


CHAPTERS: Mapping[str, Chapter] = {
    "density": Chapter(
        "Can ten thousand vPLMs of a thousand tenants share one processor as cheaply as one?",
        "All are created through the API by their tenants' own keys (40 % Pfeiffer, 30 % LoRA, "
        "20 % BitFit, 10 % Houlsby, the SDK's default sizes) and registered with the processor, "
        "the first and the last hundred one at a time. The same texts (BBC sentences of natural "
        "length, one a request) are then asked of one vPLM, or each of another drawn from all: "
        "by 64 callers without pause, and on a Poisson schedule at 60 % of what one vPLM "
        "answered; the two take turns. A new vPLM's PET module changes nothing, which costs the "
        "same; so that answers can be told apart, a sample is given random weights, and its "
        "answers amid everybody's requests are compared to those alone.",
    ),
    "peers": Chapter(
        "How many texts a second do SMILE and its alternatives answer on the same machine?",
        "Every program is loaded at once in a process and an environment of its own, and they "
        "take turns over the same token ids. Peers pad batches of 32 and hold 32 adapters of the "
        "one kind they know, the same layers and sizes as SMILE's; each must first answer a batch "
        "as its adapters do alone. SMILE answers every text with another vPLM of all that are "
        "loaded, of four kinds, one weight set each. The roofline divides the time that the "
        "backbone's matrix products take alone (`F.linear` with bias, the same numbers of "
        "tokens, the same dtype, in the same process) by the time of the whole answer.",
    ),
    "cliff": Chapter(
        "What does a working set larger than memory do to latency?",
        "A processor's host tier, or its device tier, is set to the smallest size it takes. "
        "Working sets of one, two and eight times as many vPLMs as fit are asked uniformly and by "
        "Zipf's law (exponent 1), at 30 % of the rate that the resident set reaches, on a Poisson "
        "schedule; p95 counts from the schedule. All have been asked once before, so what does not "
        "fit into the host's memory lies on local disk, in the form it has in memory; "
        "`p95_ratio_8x_without_disk` is the host tier without that, each miss a download. The "
        "headline is the worst of the four with local disk. PEFT's hot-swapping (eight slots, "
        "adapters on disk, the same number of weights) takes the same "
        "test at 30 % of its own rate.",
    ),
    "pipeline": Chapter(
        "What does overlapping look-up, loading and computing gain?",
        "Two processors on one storage differ in `SMILE_PROCESSOR_EXECUTION`. In turns each is "
        "asked once for every vPLM of a set that neither has seen, 32 requests at a time, so that "
        "every module is found, fetched, checked and loaded before it computes. Storage is on the "
        "same machine, so for the headline both reach it through a relay that holds back every "
        "answer by `store_ms`, as an object store takes; `speedup_near` is without it. Headline: "
        "four texts a request; `speedup_one_text` beside it. `speedup_materialized` is the "
        "headline's case with materialised answers, from a table of the training documents.",
    ),
    "smile_demo": Chapter(
        "Does the paper's load run: 10,000 vPLMs, each asking once a minute?",
        "Every vPLM asks at a random time in each minute, with its tenant's key over its tenant's "
        "own connection: 167 requests a second of one BBC sentence. Latency counts from the "
        "scheduled time. Client and all services share the machine; `client_cores_busy` is the "
        "client's part of it. `bfloat16` is the same load on a processor of that precision, "
        "`materialized` the same load with the lower layers looked up in a table of the training "
        "documents.",
    ),
    "fairness": Chapter(
        "What do tenants notice of one that floods the processor?",
        "Twenty tenants ask a quarter of the capacity between them, alone and while one more "
        "offers ten times the capacity, 32 texts a request, from a process of its own. The two "
        "take turns, the queue is empty in between.",
    ),
    "rpc": Chapter(
        "What do client, gRPC and service cost against calling the engine?",
        "The same texts for 64 vPLMs in memory, within the same limits of a batch: 128 callers "
        "through the SDK with one text a request (beside it eight), and the engine in one process, "
        "tokenising included. The two take turns on the same cores.",
    ),
    "materialized": Chapter(
        "What does looking up the lower layers gain, and what does it cost in accuracy?",
        "One engine answers the same batches of held-out sentences for 64 vPLMs exactly and "
        "materialised, in turns. The table has the trigrams of the training documents; "
        "`speedup` is at the share of held-out trigrams that it has (`hit_trigram`), "
        "`speedup_warm` where it has all. `hit_bigram` is the further share whose bigram it "
        "has. Accuracy is the mean over six tasks: five topics, sport or not, business or not, "
        "of sentences and of the first hundred words of documents; Pfeiffer modules of rank 24 "
        "trained on exact states answer in both modes. Neither encoder nor table has seen a "
        "held-out document.",
    ),
    "training_states": Chapter(
        "What does training on materialised states gain, and how right are modules after it?",
        "The trainer's own loop on BBC's five topics, sentences and documents of 256 tokens: "
        "Pfeiffer modules of rank 24 on exact, materialised (no table: every row is computed) and "
        "mixed states. Times are processor time up to the end of the first epoch, tokenising and "
        "states included. Accuracy is on held-out texts, each module scored on both "
        "kinds of states.",
    ),
    "skip_sweep": Chapter(
        "Which local encoder, and what shall serve an n-gram that no table has?",
        "Each local encoder answers the same held-out texts with the same six Pfeiffer modules, "
        "which begin at layer 4 and were trained on exact states; `loss_points` is what the mean "
        "accuracy loses, `agreement` the share of answers that are the exact ones. Under `compute` "
        "a missing row is computed; under `shorter` the bigram's or unigram's row serves, as in "
        "SkipBERT, and the table has every unigram besides. Smaller tables are the most frequent "
        "rows of larger ones, all from training documents. No time is measured; encoders are made "
        "by `smile backbones distill` and named by `SMILE_BENCH_ENCODERS`.",
    ),
    "skip_speed": Chapter(
        "What does each of these local encoders gain?",
        "The same batches of held-out sentences for 64 vPLMs of mixed kinds that begin at layer 4, "
        "exactly and materialised in turns, by the library's engine: with every row computed, with "
        "a table of the training documents under the encoder's policy, and with a table that has "
        "all. Ratios are within a repetition.",
    ),
    "domains": Chapter(
        "What do rows of a domain's own gain, and what do they take?",
        "Each of BBC's five topics is a domain under a general local encoder that has learned from "
        "the other four topics' training documents alone, in one pass. The domain's encoder learns "
        "further from all training documents of the topic, in two passes at a peak rate of 0.002, "
        "which is half of what `smile domains create` does; merging and upper layers stay. One "
        "encoder a domain gives all tables: `delta_30` and `delta_50`, whose n-grams cover 0.3 and "
        "0.5 of its tokens and differ from the general rows as much as they must by default, "
        "`full`, all of its n-grams, and, for `by_difference_min`, those that cover 0.5 by how "
        "much they must differ. `included` is the encoder that comes with SMILE, which has learned "
        "from all five topics in five passes. Two tasks a domain, Pfeiffer modules of rank 24 "
        "trained on exact states: `about`, whether a sentence is of the topic (half are of "
        "others), and `opening`, whether one of the topic is among the first two of its document "
        "or behind the fourth. The same modules answer held-out documents' texts exactly and with "
        "each table. `agreement` is the share of answers that are the exact ones, `error` the "
        "squared error of the last layer's states over their variance. Neither encoder, table nor "
        "module has seen a held-out document.",
    ),
    "storage": Chapter(
        "What does a tenant's model take to keep, and how fast are models made, put and fetched?",
        "A vPLM of each shape is created over MiniLM and over a backbone of BERT-base's shape, and "
        "what it added to the object store is counted file by file: module and head, manifest, "
        "record. The full model beside it is the backbone's weights file. Headline: one bottleneck "
        "of 64 in each of BERT-base's upper six layers, the layout of the SMILE prototype. "
        "Throughput is eight calls at a time through client, gRPC, creator and storage, over a "
        "directory with every write flushed to the disk, and over S3 (`s3_server`).",
    ),
    "index": Chapter(
        "What does looking up an n-gram take, and what does an index take in memory?",
        "Simulated trigrams, token ids by Zipf's law, in one structure after the other, which take "
        "turns; asked in batches of 2,048 tokens, all of them in it or none, by one thread. "
        "Figures are of its processor time, the least of five repetitions. `sorted` is NumPy's "
        "binary search, `smile_numpy` the product's own table read without native code.",
    ),
    "training": Chapter(
        "What does a tenant's training take, in time and memory, and what does it reach?",
        "The same rows of BBC news (sentences, and with the suffix `_documents` the first hundred "
        "words of documents; five topics) train all-MiniLM-L6-v2 three ways: all its weights "
        "(`full`, AdamW 5e-5) or LoRA of rank 8 on query and value (`peft`, 1e-3) with Hugging "
        "Face's Trainer and dynamic padding, and SMILE's own loop (Pfeiffer adapters of rank 24 "
        "from layer 3, AdamW 2e-3), batches of 32, float32, linear schedules. Each training is a "
        "process of its own. Time runs from when everything is imported and loaded to the end of "
        "the epoch with the best accuracy on rows from other documents, evaluations, tokenising "
        "and what SMILE computes once included. Memory is the resident peak less what was resident "
        "when everything was loaded; `_absolute` is the peak itself.",
    ),
    "eviction": Chapter(
        "Which policy shall decide what leaves memory?",
        "Traces of module uses (see `benchmarks/eviction.py`) over caches that hold a part of the "
        "modules' bytes (`trace@part`); every policy sees the same trace. Each pair is the part of "
        "the requests that found their module in the cache, and of the bytes they asked for.",
    ),
    "forming": Chapter(
        "How shall batches be formed?",
        "The same queues (see `benchmarks/forming.py`) through every strategy, with the latency "
        "model measured on this machine.",
    ),
}


def main() -> None:
    """Write the report and its plots."""
    console = Console(stderr=True, highlight=False)
    found = {entry.name: read_result(entry.name) for entry in ENTRIES}
    parts = [_head(found)]
    for name, result in found.items():
        if result is None:
            console.print(f"{name}: nothing recorded")
            continue
        plot = PLOTS.get(name)
        if plot is not None:
            plot(result, RESULTS / f"{name}.svg")
        parts.append(_chapter(name, result, plotted=plot is not None))
    REPORT.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    console.print(f"wrote {REPORT}")


def _head(found: Mapping[str, dict[str, Json] | None]) -> str:
    rows = [
        (f"[{name}](#{name})", *_target_row(target))
        for name, result in found.items()
        for target in _targets(result)
    ]
    machines = {_machine_text(_machine(result)) for result in found.values() if result}
    targets = table(("benchmark", "key", "target", "measured", ""), rows)
    return (
        "# What was measured\n\n"
        "Written by `python -m benchmarks.report` from the results recorded beside it; run "
        "`make bench` on an idle machine for your own. Figures are medians of several "
        "repetitions in which the compared variants took turns; ratios are medians of the ratios "
        "within a repetition.\n\n"
        f"{targets}\n\n{_story('overview')}## Machine\n\n" + "\n\n".join(sorted(machines))
    ).rstrip()


def _chapter(name: str, result: dict[str, Json], *, plotted: bool) -> str:
    chapter = CHAPTERS[name]
    quick = " (a quick run: nothing better is recorded)" if result["quick"] else ""
    figures = figures_of(result)
    plot = f"\n\n![{name}](results/{name}.svg)" if plotted else ""
    rows = [_target_row(target) for target in _targets(result)]
    targets = table(("key", "target", "measured", ""), rows) + "\n\n" if rows else ""
    machine = _machine(result)
    return (
        f"## {name}\n\n**{chapter.question}**{quick}\n\n{chapter.method}\n\n"
        f"`python -m benchmarks.{name}{' --quick' if result['quick'] else ''}`, "
        f"{result['recorded']}, {result['seconds']} s, revision `{machine.get('revision')}`, load "
        f"average at the start {machine.get('load')}"
        f"{'' if machine.get('idle') else ' (**not idle**)'}.\n\n"
        f"{targets}{_story(name)}<details><summary>All figures</summary>\n\n{details(figures)}\n\n"
        f"</details>{plot}"
    )


def _story(name: str) -> str:
    path = STORY / f"{name}.md"
    return f"{path.read_text(encoding='utf-8').strip()}\n\n" if path.exists() else ""


def _targets(result: dict[str, Json] | None) -> list[Mapping[str, Json]]:
    targets = result.get("targets") if result else None
    assert targets is None or isinstance(targets, Sequence), "a list of targets"
    return [target for target in targets or () if isinstance(target, Mapping)]


def _target_row(target: Mapping[str, Json]) -> tuple[str, ...]:
    met = target["met"]
    assert met is None or isinstance(met, bool), "met or not"
    bound = f"{target['bound']} {shown(target['value'])}"
    return f"`{target['key']}`", bound, shown(target["measured"]), MARKS[met]


def _machine(result: dict[str, Json]) -> Mapping[str, Json]:
    machine = result["machine"]
    assert isinstance(machine, Mapping), "a result has its machine"
    return machine


def _machine_text(machine: Mapping[str, Json]) -> str:
    flags = machine["flags"]
    packages = machine["packages"]
    assert isinstance(flags, Sequence) and isinstance(packages, Mapping), "as described"
    return (
        f"{machine['cpu']}, {machine['cores']} cores ({', '.join(map(str, flags))}), "
        f"{machine['ram_gib']} GiB; {machine['system']}; Python {machine['python']}; "
        f"{', '.join(f'{name} {version}' for name, version in packages.items())}; "
        f"{machine['threads']} threads; {machine['compiler'] or 'no compiler'}."
    )


if __name__ == "__main__":
    main()
