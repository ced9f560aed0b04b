"""What only the directory store must do: processes, crashes, permissions, a full disk."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from smile.errors import FailedPrecondition, Unavailable
from smile.store import directory
from smile.store.directory import DirectoryStore

INCREMENT = """
import asyncio, sys
from pathlib import Path
from smile.errors import Aborted
from smile.store.directory import DirectoryStore

async def main():
    store = DirectoryStore(Path(sys.argv[1]))
    for _ in range(20):
        while True:
            found = await store.get("count")
            try:
                await store.compare_and_swap("count", b"%d" % (int(found.data) + 1), found.etag)
                break
            except Aborted:
                pass

asyncio.run(main())
"""


@pytest.mark.asyncio
async def test_processes_lose_no_update(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    await store.put_if_absent("count", b"0")
    command = [sys.executable, "-c", INCREMENT, str(tmp_path)]
    children = [await asyncio.create_subprocess_exec(*command) for _ in range(3)]
    assert [await child.wait() for child in children] == [0, 0, 0]
    found = await store.get("count")
    assert found is not None
    assert found.data == b"60"


@pytest.mark.asyncio
async def test_a_killed_writer_leaves_nothing_visible_and_no_lock(tmp_path: Path) -> None:
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom smile.store import directory\n"
        "import asyncio\n"
        "directory._flush = lambda file: os._exit(9)\n"
        "asyncio.run(directory.DirectoryStore(Path(sys.argv[1])).put_if_absent('k', b'torn'))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)  # noqa: ASYNC221
    assert done.returncode == 9
    store = DirectoryStore(tmp_path)
    assert await store.get("k") is None
    assert await store.put_if_absent("k", b"whole")


@pytest.mark.asyncio
async def test_left_over_temporary_files_go_when_they_are_old(tmp_path: Path) -> None:
    folder = tmp_path / ".smile" / "tmp"
    folder.mkdir(parents=True)
    (folder / "old").write_bytes(b"x")
    (folder / "young").write_bytes(b"x")
    yesterday = time.time() - directory.TEMPORARY_AGE_S_MAX - 60
    os.utime(folder / "old", (yesterday, yesterday))
    await DirectoryStore(tmp_path).probe()
    assert [path.name for path in folder.iterdir()] == ["young"]


@pytest.mark.asyncio
async def test_bytes_reach_the_disk_before_the_name_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        folder = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        events.append("flush data" if regular else f"flush {folder.relative_to(tmp_path.parent)}")
        fsync(descriptor)

    def record_replace(source: Path, target: Path) -> None:
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    store = DirectoryStore(tmp_path)

    async def chunks() -> AsyncIterator[bytes]:
        yield b"1"

    root = tmp_path.name
    wanted = {
        "above/folder/streamed": [f"{root}/above/folder", f"{root}/above", root, "."],
        "above/folder/small": [f"{root}/above/folder"],
        "above/other/small": [f"{root}/above/other", f"{root}/above"],
    }
    for key, folders in wanted.items():
        events.clear()
        if key.endswith("streamed"):
            await store.put_stream(key, chunks())
        else:
            await store.put_if_absent(key, b"1")
        assert events[:2] == ["flush data", "rename"]
        assert sorted(events[2:]) == sorted(f"flush {folder}" for folder in folders)


@pytest.mark.parametrize(
    ("number", "reason", "kind"),
    [
        (errno.EACCES, "STORE_ACCESS_DENIED", FailedPrecondition),
        (errno.EROFS, "STORE_ACCESS_DENIED", FailedPrecondition),
        (errno.ENOSPC, "STORE_FULL", Unavailable),
        (errno.EIO, "STORE_UNAVAILABLE", Unavailable),
    ],
)
@pytest.mark.asyncio
async def test_refusals_of_the_system_become_ours(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    reason: str,
    kind: type[FailedPrecondition | Unavailable],
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number), str(tmp_path / "place"))

    monkeypatch.setattr(os, "replace", refuse)
    store = DirectoryStore(tmp_path)
    with pytest.raises(kind) as caught:
        await store.put_if_absent("k", b"1")
    assert caught.value.reason == reason
    if kind is FailedPrecondition:
        assert str(tmp_path / "place") in caught.value.message
    assert await store.get("k") is None
    assert list((tmp_path / ".smile" / "tmp").iterdir()) == []


@pytest.mark.asyncio
async def test_a_root_that_is_a_file_is_told_by_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FailedPrecondition, match="file") as caught:
        await DirectoryStore(tmp_path / "file").probe()
    assert caught.value.reason == "STORE_ACCESS_DENIED"


@pytest.mark.asyncio
async def test_a_lock_held_elsewhere_does_not_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "LOCK_WAIT_S_MAX", 0.05)
    store = DirectoryStore(tmp_path)
    with store._locked("k"), pytest.raises(Unavailable) as caught:
        await store.put_if_absent("k", b"1")
    assert caught.value.reason == "STORE_BUSY"


@pytest.mark.asyncio
async def test_deletes_prune_folders_under_concurrent_writes(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)

    async def churn(name: str) -> None:
        for _ in range(15):
            assert await store.put_if_absent(f"a/b/{name}", b"1")
            await store.delete(f"a/b/{name}")

    await asyncio.gather(*(churn(f"n{n}") for n in range(4)))
    assert os.listdir(tmp_path) == [".smile"]
