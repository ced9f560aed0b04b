"""An independent reader of the bucket: it knows the layout, and shares no code with storage.

Whatever was killed whenever, what it reads must be whole: a record leads to manifests, a manifest
to bytes that have its digest, a job that has not ended to its place among those to be done.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

DONE = ("succeeded", "failed", "cancelled")


class Bucket(Protocol):
    """Objects by key."""

    def list(self) -> list[str]: ...

    def read(self, key: str) -> bytes: ...


@dataclass(frozen=True)
class Folder:
    """The bucket of a directory store."""

    root: Path

    def list(self) -> list[str]:
        found = []
        for folder, folders, files in os.walk(self.root):
            folders[:] = [name for name in folders if not name.startswith(".")]
            found += [str((Path(folder) / name).relative_to(self.root)) for name in files]
        return sorted(found)

    def read(self, key: str) -> bytes:
        return (self.root / key).read_bytes()


@dataclass
class Verdict:
    """What the bucket holds.

    Attributes:
        torn: What is visible and not whole, in words.
        checked: Things that were read and found whole.
        orphans: Keys of bytes that no record leads to: no harm, but to be collected.
        whole: What is visible by its name: digest of versions and datasets, state of jobs.
    """

    torn: list[str] = field(default_factory=list)
    checked: int = 0
    orphans: list[str] = field(default_factory=list)
    whole: dict[str, str] = field(default_factory=dict)


class Judge:
    """Reads a bucket once, whole."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._found = Verdict()
        self._reached: set[str] = set()
        self._keys: set[str] = set()

    def judge(self) -> Verdict:
        self._found, self._reached = Verdict(), set()
        self._keys = set(self._bucket.list())
        readers: dict[str, Callable[[str, dict[str, Any]], None]] = {
            "vplm.json": self._vplm,
            "dataset.json": self._dataset,
            "record.json": self._job,
        }
        for key in sorted(self._keys, reverse=True):  # vPLMs before jobs, which name versions
            if not key.endswith(".json"):
                continue
            record = self._record(key)
            reader = readers.get(key.rpartition("/")[2])
            if record is not None and reader is not None:
                reader(key, record)
        owned = ("/blobs/", "/versions/", "/data")
        self._found.orphans = [
            key
            for key in sorted(self._keys - self._reached)
            if any(part in key for part in owned) and key.startswith("tenants/")
        ]
        return self._found

    def _record(self, key: str) -> dict[str, Any] | None:
        try:
            record = json.loads(self._bucket.read(key))
            assert record["schema"] == 1
        except FileNotFoundError:
            return None  # deleted since it was listed
        except (ValueError, KeyError, AssertionError, TypeError) as error:
            self._torn(key, f"is no document: {error!r}")
            return None
        self._found.checked += 1
        return dict(record)

    def _vplm(self, key: str, record: dict[str, Any]) -> None:
        if record["deleted"] is not None:
            return
        folder, name = f"{key.removesuffix('vplm.json')}{record['uid']}", key.rpartition("/")[0]
        latest = int(record["latest_version"])
        self._found.whole[name] = json.dumps([latest, record["aliases"]], sort_keys=True)
        for number in range(1, latest + 1):
            place = f"{folder}/versions/{number:09d}.json"
            manifest = self._record(place) if place in self._keys else None
            if manifest is None:
                self._torn(key, f"knows of version {number}, whose manifest is not there")
                continue
            self._reached.add(place)
            if manifest["number"] != number:
                self._torn(place, f"is of number {manifest['number']}")
            self._bytes(f"{folder}/blobs/{manifest['digest']}", manifest)
            self._found.whole[f"{name}/versions/{number}"] = manifest["digest"]
        for alias, number in record["aliases"].items():
            if not 1 <= number <= latest:
                self._torn(key, f"points {alias} to version {number} of {latest}")

    def _dataset(self, key: str, record: dict[str, Any]) -> None:
        if record["deleted"] is not None:
            return
        folder = key.removesuffix("dataset.json")
        self._bytes(f"{folder}{record['uid']}/data", record)
        self._found.whole[folder.removesuffix("/")] = record["digest"]

    def _job(self, key: str, stored: dict[str, Any]) -> None:
        job = stored["record"]["job"]
        _, tenant, _, name, _ = key.split("/")
        self._found.whole[job["name"]] = job["state"]
        pending = f"pendingJobs/{tenant}/{name}"
        if job["state"] not in DONE and pending not in self._keys:
            self._torn(key, "has not ended, and is not among the jobs to be done")
        if job["state"] == "succeeded":
            vplm, _, number = job["version"].rpartition("/versions/")
            if self._found.whole.get(job["version"]) is None and self._there(f"{vplm}/vplm.json"):
                self._torn(key, f"made version {number}, which is not there")
        curve = f"{key.removesuffix('record.json')}curve.jsonl"
        if curve in self._keys:
            self._curve(curve)

    def _there(self, key: str) -> bool:
        return key in self._keys and json.loads(self._bucket.read(key))["deleted"] is None

    def _curve(self, key: str) -> None:
        *lines, last, _ = self._bucket.read(key).split(b"\n")
        digest = hashlib.sha256(b"".join(line + b"\n" for line in lines)).hexdigest()
        if json.loads(last).get("digest") != digest:
            self._torn(key, "does not match its digest")
        self._found.checked += 1

    def _bytes(self, key: str, manifest: dict[str, Any]) -> None:
        self._reached.add(key)
        if key not in self._keys:
            self._torn(key, "is not there, and is named")
            return
        data = self._bucket.read(key)
        right = hashlib.sha256(data).hexdigest() == manifest["digest"]
        if not right or len(data) != manifest["size_bytes"]:
            self._torn(key, f"has {len(data)} bytes that are not those of its digest")
            return
        self._found.checked += 1

    def _torn(self, key: str, what: str) -> None:
        self._found.torn.append(f"{key} {what}")
