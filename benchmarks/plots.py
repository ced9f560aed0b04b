"""One picture for each benchmark, drawn from its recorded result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.harness.json_types import Json, number

mpl.use("Agg")

Plot = Callable[[Mapping[str, Json], Path], None]
OURS, THEIRS, BOUND = "#1b6ca8", "#b0b7bd", "#c0392b"
SIZE = (7.0, 3.2)  # inches
PEERS = {
    "peft_switch": "PEFT, switching",
    "polylora": "PolyLoRA",
    "adapters_batchsplit": "AdapterHub BatchSplit",
    "peft_mixed": "PEFT, mixed batch",
    "hf_one_model": "Hugging Face, one model",
    "hf_sorted": "Hugging Face, sorted by length",
    "hf_bfloat16": "Hugging Face, bfloat16",
    "smile_float32": "SMILE, float32",
    "smile_bfloat16": "SMILE, bfloat16",
}


def peers(result: Mapping[str, Json], path: Path) -> None:
    """Texts a second of every program."""
    rates = {PEERS[key]: value for key in PEERS if (value := number(result.get(key))) is not None}
    colours = [OURS if name.startswith("SMILE") else THEIRS for name in rates]
    _, axes = plt.subplots(figsize=SIZE)
    bars = axes.barh(list(rates), list(rates.values()), color=colours)
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.set_xlabel(f"texts a second; SMILE with {result.get('vplms')} vPLMs, each text another")
    axes.margins(x=0.1)
    _save(axes, path)


def density(result: Mapping[str, Json], path: Path) -> None:
    """What registering and creating cost as vPLMs become more; throughput of one and of all."""
    _, (left, right) = plt.subplots(1, 2, figsize=SIZE, width_ratios=(2, 1))
    vplms = number(result.get("vplms")) or 1.0
    for name, colour in (("register", OURS), ("create", THEIRS)):
        values = _numbers(result.get(f"{name}_ms_by_tenth"))
        if values:
            counts = [vplms * (tenth + 0.5) / len(values) for tenth in range(len(values))]
            left.plot(counts, values, marker="o", color=colour, label=name)
    left.set_xlabel("vPLMs already there")
    left.set_ylabel("ms, median of a tenth")
    left.set_ylim(bottom=0)
    left.legend()
    pair = [number(result.get(f"throughput_{who}_per_s")) or 0.0 for who in ("one", "mixed")]
    bars = right.bar(["one vPLM", "all mixed"], pair, color=[THEIRS, OURS])
    right.bar_label(bars, fmt="%.0f")
    right.set_ylabel("requests a second")
    _save(left, path)


def cliff(result: Mapping[str, Json], path: Path) -> None:
    """p95 over that of the smallest working set, for each tier and distribution, and PEFT's."""
    _, axes = plt.subplots(figsize=SIZE)
    factors = (1, 2, 8)
    ours = result.get("p95_ratios")
    if isinstance(ours, Mapping):
        for name, ratios in ours.items():
            if isinstance(ratios, Mapping):
                values = [number(ratios.get(f"{factor}x")) or 0.0 for factor in factors]
                axes.plot(factors, values, marker="o", label=name.replace("_", ", "))
    theirs = result.get("peer_p95_ratios")
    if isinstance(theirs, Mapping):
        for kind in ("uniform", "zipf"):
            values = [number(theirs.get(f"{kind}_{factor}x")) or 0.0 for factor in factors]
            label = f"PEFT hot-swap, {kind}"
            axes.plot(factors, values, marker="s", linestyle="--", color=THEIRS, label=label)
    axes.axhline(1.5, color=BOUND, linewidth=0.8)
    axes.set_yscale("log")
    axes.set_xticks(factors, [f"{factor}x" for factor in factors])
    axes.set_xlabel("working set over the tier")
    axes.set_ylabel("p95 over that at 1x")
    axes.legend(fontsize="small")
    _save(axes, path)


def pipeline(result: Mapping[str, Json], path: Path) -> None:
    """Requests a second of both modes, by distance of the store and texts of a request."""
    rates = result.get("rates")
    cases = list(rates) if isinstance(rates, Mapping) else []
    _, axes = plt.subplots(figsize=SIZE)
    for shift, (mode, colour) in enumerate((("sequential", THEIRS), ("pipelined", OURS))):
        values = [number(result.get(f"{mode}_requests_per_s_{case}")) or 0.0 for case in cases]
        places = [place + 0.4 * shift - 0.2 for place in range(len(cases))]
        bars = axes.bar(places, values, width=0.38, color=colour, label=mode)
        axes.bar_label(bars, fmt="%.0f")
    labels = {"far": f"store {number(result.get('store_ms')) or 0:.0f} ms away", "near": "near"}
    named = [case.split("_") for case in cases]
    axes.set_xticks(
        range(len(cases)),
        [
            "\n".join((labels.get(store, store), f"{texts} texts", *how))
            for store, texts, *how in named
        ],
    )
    axes.set_ylabel("cold requests a second")
    axes.legend()
    _save(axes, path)


def fairness(result: Mapping[str, Json], path: Path) -> None:
    """The others' latencies, alone and beside the flood."""
    _, axes = plt.subplots(figsize=SIZE)
    for shift, (who, colour) in enumerate((("alone", THEIRS), ("flooded", OURS))):
        values = [number(result.get(f"{share}_{who}_ms")) or 0.0 for share in ("p50", "p99")]
        bars = axes.bar(
            [0.4 * shift - 0.2, 1 + 0.4 * shift - 0.2], values, 0.38, color=colour, label=who
        )
        axes.bar_label(bars, fmt="%.1f")
    axes.set_xticks((0, 1), ("p50", "p99"))
    axes.set_ylabel("the others' latency, ms")
    axes.legend()
    _save(axes, path)


def smile_demo(result: Mapping[str, Json], path: Path) -> None:
    """Latency by percentile, of exact and materialised answers, against the target."""
    shares = ("p50", "p95", "p99", "p999", "max")
    _, axes = plt.subplots(figsize=SIZE)
    modes = (("exact", result, OURS), ("materialised", result.get("materialized"), THEIRS))
    for shift, (mode, of_mode, colour) in enumerate(modes):
        found = of_mode.get("latencies") if isinstance(of_mode, Mapping) else None
        if not isinstance(found, Mapping):
            continue  # recorded before there was this mode
        values = [number(found.get("max_ms" if s == "max" else f"{s}_ms")) or 0.0 for s in shares]
        places = [place + 0.4 * shift - 0.2 for place in range(len(shares))]
        bars = axes.bar(places, values, width=0.38, color=colour, label=mode)
        axes.bar_label(bars, fmt="%.0f")
    axes.set_xticks(range(len(shares)), ("p50", "p95", "p99", "p99.9", "max"))
    axes.axhline(250.0, color=BOUND, linewidth=0.8)
    rate = number(result.get("achieved_rps")) or 0.0
    axes.set_ylabel("ms from the scheduled time")
    axes.set_xlabel(f"{rate:.0f} requests a second over {result.get('vplms')} vPLMs")
    axes.legend()
    _save(axes, path)


def rpc(result: Mapping[str, Json], path: Path) -> None:
    """Texts a second with and without the network between."""
    keys = {
        "engine in process": "engine_texts_per_s",
        "1 text a request": "texts_per_s_1",
        "8 texts a request": "texts_per_s_8",
    }
    values = [number(result.get(key)) or 0.0 for key in keys.values()]
    _, axes = plt.subplots(figsize=SIZE)
    bars = axes.bar(list(keys), values, color=[THEIRS, OURS, OURS])
    axes.bar_label(bars, fmt="%.0f")
    axes.set_ylabel("texts a second")
    _save(axes, path)


def eviction(result: Mapping[str, Json], path: Path) -> None:
    """Mean hit rate of every policy, by requests and by bytes."""
    means = result.get("means")
    assert isinstance(means, Mapping), "recorded with the result"
    _, axes = plt.subplots(figsize=SIZE)
    for shift, (what, colour) in enumerate((("by requests", OURS), ("by bytes", THEIRS))):
        values = [_numbers(pair)[shift] for pair in means.values()]
        places = [place + 0.4 * shift - 0.2 for place in range(len(values))]
        bars = axes.bar(places, values, width=0.38, color=colour, label=what)
        axes.bar_label(bars, fmt="%.3f", fontsize="small")
    axes.set_xticks(range(len(means)), list(means))
    axes.set_ylabel("mean hit rate")
    axes.legend()
    _save(axes, path)


def storage(result: Mapping[str, Json], path: Path) -> None:
    """Kilobytes of a vPLM by shape, beside the full model, for both backbones."""
    found, full = result.get("bytes"), result.get("full_model_bytes")
    assert isinstance(found, Mapping) and isinstance(full, Mapping), "recorded with the result"
    _, axes = plt.subplots(figsize=(SIZE[0], 1.4 * SIZE[1]))
    for shift, (backbone, colour) in enumerate(zip(found, (THEIRS, OURS), strict=True)):
        sizes = found[backbone]
        assert isinstance(sizes, Mapping), "sizes by shape"
        shown = {**sizes, "full model": full[backbone]}
        values = [(number(value) or 0.0) / 1e3 for value in shown.values()]
        places = [place + 0.4 * shift - 0.2 for place in range(len(values))]
        bars = axes.barh(places, values, height=0.38, color=colour, label=str(backbone))
        axes.bar_label(bars, fmt="%.0f", fontsize="x-small", padding=2)
        axes.set_yticks(range(len(shown)), list(shown), fontsize="small")
    axes.set_xscale("log")
    axes.set_xlabel("kB in the object store (logarithmic)")
    axes.invert_yaxis()
    axes.legend()
    _save(axes, path)


def index(result: Mapping[str, Json], path: Path) -> None:
    """Nanoseconds a look-up that finds its n-gram, by structure and number of keys."""
    found = result.get("hit_ns")
    assert isinstance(found, Mapping), "recorded with the result"
    _, axes = plt.subplots(figsize=SIZE)
    names = list(dict.fromkeys(key.partition(".")[2] for key in found))
    for name in names:
        values = {key: value for key, value in found.items() if key.endswith(f".{name}")}
        sizes = [float(key.partition(".")[0]) for key in values]
        colour, style = (OURS, "-") if name == "smile" else (None, "--")
        times = [number(value) or 0.0 for value in values.values()]
        axes.plot(sizes, times, style, color=colour, marker="o", label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("keys")
    axes.set_ylabel("ns a look-up")
    axes.legend(fontsize="small")
    _save(axes, path)


def training(result: Mapping[str, Json], path: Path) -> None:
    """Held-out accuracy over time, of each way to train."""
    found = result.get("trainings")
    assert isinstance(found, Mapping), "recorded with the result"
    _, panels = plt.subplots(1, len(found), figsize=SIZE, sharey=True)
    for axes, (name, trained) in zip(panels, found.items(), strict=True):
        assert isinstance(trained, Mapping)
        for (who, runs), colour in zip(trained.items(), (THEIRS, BOUND, OURS), strict=True):
            for number_of, run in enumerate(cast("Sequence[Mapping[str, Json]]", runs)):
                epochs = cast("Sequence[tuple[float, float]]", run["epochs"])
                label = None if number_of else who
                axes.plot(*zip(*epochs, strict=True), marker="o", color=colour, label=label)
        axes.set_xlabel(f"seconds, {name}")
        axes.set_xlim(left=0)
    panels[0].set_ylabel("held-out accuracy")
    panels[0].legend()
    _save(panels[0], path)


def materialized(result: Mapping[str, Json], path: Path) -> None:
    """Texts a second of each mode, and the speed-up by size of the table."""
    _, (left, right) = plt.subplots(1, 2, figsize=SIZE)
    names = ("texts_per_s_exact", "texts_per_s", "texts_per_s_warm")
    rates = [number(result.get(name)) or 0.0 for name in names]
    bars = left.bar(["exact", "looked up", "all found"], rates, color=[THEIRS, OURS, OURS])
    left.bar_label(bars, fmt="%.0f")
    left.set_ylabel("texts a second")
    sizes = result.get("sizes")
    rows = [one for one in sizes if isinstance(one, Mapping)] if isinstance(sizes, list) else []
    for dtype, colour in (("float16", OURS), ("int8", THEIRS)):
        of_it = [one for one in rows if one.get("dtype") == dtype]
        right.plot(
            [100 * (number(one.get("found")) or 0.0) for one in of_it],
            [number(one.get("speedup")) or 0.0 for one in of_it],
            marker="o",
            color=colour,
            label=dtype,
        )
    right.set_xlabel("% of n-grams found, by size of the table")
    right.set_ylabel("speed-up")
    right.set_ylim(bottom=1.0)
    right.legend()
    _save(left, path)


def skip_sweep(result: Mapping[str, Json], path: Path) -> None:
    """What encoders lose under their own policy, and what policies lose by size of the table."""
    rows = cast("Sequence[Mapping[str, Json]]", result.get("variants"))
    _, (left, right) = plt.subplots(1, 2, figsize=SIZE)
    own = {
        str(one["encoder"]): (one, number(one["loss_points"]) or 0.0)
        for one in rows
        if one["policy"] == one["distilled_for"] and one["dtype"] == "float16"
    }
    colours = [OURS if one["policy"] == "compute" else THEIRS for one, _ in own.values()]
    bars = left.barh(list(own), [loss for _, loss in own.values()], color=colours)
    left.bar_label(bars, fmt="%.2f", padding=3)
    left.axvline(0.5, color=BOUND, linewidth=0.8)
    left.set_xlabel("points of accuracy lost")
    left.margins(x=0.15)
    series: dict[str, list[tuple[float, float]]] = {}
    for one in rows:
        if one["dtype"] == "float16" and one["encoder"] != "included":
            name = f"{one['encoder']}, {one['policy']}"
            place = (number(one["table_bytes"]) or 0.0) / 2**20, number(one["loss_points"]) or 0.0
            series.setdefault(name, []).append(place)
    for name, places in series.items():
        line = "-" if len(places) > 1 else ""
        right.plot(*zip(*places, strict=True), marker="o", linestyle=line, label=name)
    right.set_xlabel("MiB of table")
    right.set_ylabel("points of accuracy lost")
    right.legend(fontsize="small")
    _save(left, path)


def skip_speed(result: Mapping[str, Json], path: Path) -> None:
    """Speed-up of each encoder, by what its table has."""
    rows = cast("Sequence[Mapping[str, Json]]", result.get("encoders"))
    _, axes = plt.subplots(figsize=SIZE)
    names = [str(one["encoder"]) for one in rows]
    ways = {"computed": "no table", "looked_up": "table of other texts", "all_found": "all found"}
    for shift, (way, label) in enumerate(ways.items()):
        values = [number(one[f"speedup_{way}"]) or 0.0 for one in rows]
        places = [place + 0.27 * (shift - 1) for place in range(len(rows))]
        bars = axes.bar(places, values, width=0.25, label=label)
        axes.bar_label(bars, fmt=lambda value: f"{value:.2f}" if value else "", fontsize="x-small")
    axes.axhline(1.0, color=BOUND, linewidth=0.8)
    axes.set_xticks(range(len(rows)), names, rotation=20, ha="right")
    axes.set_ylabel("texts a second over exact")
    axes.legend(fontsize="small")
    _save(axes, path)


def domains(result: Mapping[str, Json], path: Path) -> None:
    """Mean agreement with exact answers, and error of the last states, by MiB of a domain: by share
    covered, and by least difference from the general rows.
    """
    _, (left, right) = plt.subplots(1, 2, figsize=SIZE, layout="constrained")
    labels = {"general": "general", "delta_30": "0.3", "delta_50": "0.5", "full": "full"}
    found = result.get("by_difference_min")
    every = found.values() if isinstance(found, Mapping) else ()
    swept = [row for row in every if isinstance(row, Mapping) and number(row.get("rows"))]
    panels = (
        (left, "agreement", "% of answers as exact", 100.0),
        (right, "error", "error of last states", 1.0),
    )
    for axes, what, label, scale in panels:
        kinds = [(f"bytes_{one}", f"{what}_{one}") for one in labels]
        points = [(_mib(result, size), scale * _at(result, value)) for size, value in kinds]
        axes.plot(*zip(*points, strict=True), marker="o", color=OURS, label="by share covered")
        for point, name in zip(points, labels.values(), strict=True):
            axes.annotate(name, point, textcoords="offset points", xytext=(4, 4))
        by_least = [(_mib(row, "bytes"), scale * _at(row, what)) for row in swept]
        if by_least:
            places = zip(*by_least, strict=True)
            axes.plot(*places, marker=".", color=THEIRS, label="0.5, by least difference")
        if (included := number(result.get(f"{what}_included"))) is not None:
            axes.axhline(scale * included, color=BOUND, linestyle="--", label="included encoder")
        axes.set_xlabel("MiB of rows, mean of five domains")
        axes.set_ylabel(label)
        axes.margins(0.15)
    right.legend(fontsize="small", loc="center right")
    _save(left, path)


PLOTS: Mapping[str, Plot] = {
    "domains": domains,
    "materialized": materialized,
    "skip_sweep": skip_sweep,
    "skip_speed": skip_speed,
    "training": training,
    "index": index,
    "storage": storage,
    "density": density,
    "peers": peers,
    "cliff": cliff,
    "pipeline": pipeline,
    "fairness": fairness,
    "smile_demo": smile_demo,
    "rpc": rpc,
    "eviction": eviction,
}


def _at(figures: Mapping[str, Json], key: str) -> float:
    return number(figures.get(key)) or 0.0


def _mib(figures: Mapping[str, Json], key: str) -> float:
    return _at(figures, key) / 2**20


def _numbers(value: Json) -> list[float]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        return []
    return [found for item in value if (found := number(item)) is not None]


def _save(axes: Axes, path: Path) -> None:
    """The same bytes for the same figures: no date, no random ids."""
    figure = axes.figure
    assert isinstance(figure, Figure), "axes of a whole figure"
    with mpl.rc_context({"svg.hashsalt": path.stem}):
        figure.savefig(str(path), bbox_inches="tight", metadata={"Date": None})
    plt.close("all")
