"""Strikes the platform everywhere and tells what it found: `python -m tests.faults --all`.

A table, and one JSON object as the last line. Without `--all` a few faults of each kind are drawn
by `--seed`, as `make test` does. `--only NAME` plays one scenario. Ends with 1 where anything was
lost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys

from rich.console import Console
from rich.table import Table

from tests.faults.scenarios import SCENARIOS, ground
from tests.faults.tally import Tally

COLUMNS = ("faults", "steps", "acknowledged", "checked", "lost", "torn", "seconds")


async def played(names: list[str], *, everything: bool, seed: int) -> dict[str, Tally]:
    """What each scenario found."""
    console = Console(stderr=True)
    found: dict[str, Tally] = {}
    async with ground() as on:
        for name in names:
            if not SCENARIOS[name].possible():
                console.print(f"{name}: not possible on this machine", style="bold red")
                continue
            console.print(f"{name} ...")
            found[name] = await SCENARIOS[name].play(on, everything=everything, seed=seed)
            for what in (*found[name].lost, *found[name].torn):
                console.print(f"  {what}", style="red", markup=False)
            console.print(f"  {json.dumps(found[name].row())}", markup=False, soft_wrap=True)
    return found


def show(found: dict[str, Tally]) -> None:
    table = Table("scenario", "fault", *COLUMNS)
    for name, tally in found.items():
        row = tally.row()
        table.add_row(name, tally.fault, *(str(row[column]) for column in COLUMNS))
    console = Console(width=160)
    console.print(table)
    total = {
        column: round(sum(float(str(tally.row()[column])) for tally in found.values()))
        for column in COLUMNS
    }
    rows = {name: tally.row() for name, tally in found.items()}
    sys.stdout.write(json.dumps({"scenarios": rows, **total}) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--all", action="store_true", help="every step, not a few")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=sorted(SCENARIOS), default=None)
    options = parser.parse_args()
    names = options.only or list(SCENARIOS)
    found = asyncio.run(played(names, everything=options.all, seed=options.seed))
    show(found)
    return 0 if all(tally.faultless for tally in found.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
