"""Try a running platform as a new tenant would: create, train, infer, delete.

    SMILE_OPERATOR_KEY=smileop_... python deploy/smoke.py [--data examples/mails.csv]

Uses `SMILE_ENDPOINTS` (default: this machine's ports 7101 to 7104). Makes one tenant of its own,
and deletes the model and the dataset it made. The last line is one JSON object; the exit code is 0
only if the trained model, asked again, labels the training texts well.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import secrets
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import smile

ACCURACY_MIN = 0.9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("examples/mails.csv"))
    parser.add_argument("--backbone", default="minilm")
    options = parser.parse_args()
    operator_key = os.environ.get("SMILE_OPERATOR_KEY")
    if not operator_key:
        parser.error("SMILE_OPERATOR_KEY is not set")
    tenant = f"smoke-{secrets.token_hex(4)}"
    with smile.Client(operator_key) as operator:
        key = operator.create_tenant(tenant).key
    with smile.Client(key) as client:
        outcome = journey(client, options.data, options.backbone)
    sys.stdout.write(json.dumps({"tenant": tenant, **asdict(outcome)}) + "\n")
    return 0 if outcome.accuracy >= ACCURACY_MIN else 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the journey measured; seconds include the network."""

    accuracy: float
    create_seconds: float
    train_seconds: float
    version: str
    digest: str


def journey(client: smile.Client, data: Path, backbone: str) -> Outcome:
    """One model's life."""
    rows = list(csv.DictReader(data.read_text(encoding="utf-8").splitlines()))
    labels = sorted({row["label"] for row in rows})
    started = time.perf_counter()
    client.create_vplm("smoke", backbone=backbone, pet=smile.LoRA(rank=8), labels=labels)
    created = time.perf_counter()
    client.upload_dataset("smoke", data)
    job = client.wait(client.train("smoke", "smoke", epochs=10))
    trained = time.perf_counter()
    answer = client.infer("smoke", [row["text"] for row in rows])
    assert answer.version == job.version, f"{answer.version} answered, {job.version} was trained"
    found = [prediction.result for prediction in answer.predictions]
    right = sum(
        isinstance(result, smile.Classification) and result.label == row["label"]
        for result, row in zip(found, rows, strict=True)
    )
    client.delete_vplm("smoke")
    client.delete_dataset("smoke")
    return Outcome(
        accuracy=right / len(rows),
        create_seconds=round(created - started, 3),
        train_seconds=round(trained - created, 3),
        version=answer.version,
        digest=answer.digest,
    )


if __name__ == "__main__":
    raise SystemExit(main())
