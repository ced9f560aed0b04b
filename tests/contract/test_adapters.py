"""Public adapters: the operator offers a trained module, tenants begin with it and go on.

As in the paper's example, where BERT with a public adapter for biomedical texts is trained further
for ChemProt: here the adapter knows of news which words are of a kind, and a tenant with a handful
of rows of its own, under labels of its own, learns from it about words it has no row for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from typer.testing import CliRunner

import smile
from services.storage.maintenance.places import place_of
from services.storage.maintenance.references import References
from smile.cli.app import build
from smile.model.toy import write_toy_backbone
from tests.contract.platform_world import Platform, platform_world
from tests.contract.sdk_world import world_in_thread

CITY = "bus car city house london paris road shop street town train trade"
NATURE = "bird fire fish moon mouse rain river sea snow sun tree water wind"
KINDS = {"city": tuple(CITY.split(" ")), "nature": tuple(NATURE.split(" "))}
KNOWN = 3  # words of a kind that the tenant has rows of
FRAMES = ("the {} is here", "we see a {}", "all of the {} now", "my {} was not old")
PET = smile.Pfeiffer(rank=8, first_layer=0)
TRAINING: dict[str, Any] = {"learning_rate": 1e-2, "batch_size": 8, "seed": 1}
ON_LOOP = pytest.mark.asyncio(loop_scope="module")


def rows(words: slice, labels: dict[str, str]) -> list[dict[str, str]]:
    return [
        {"text": frame.format(word), "label": labels[kind]}
        for kind, all_words in KINDS.items()
        for word in all_words[words]
        for frame in FRAMES
    ]


PUBLIC = {"city": "city", "nature": "nature"}
PRIVATE = {"city": "stone", "nature": "green"}
OWN_ROWS = rows(slice(0, KNOWN), PRIVATE)
OTHERS = rows(slice(KNOWN, None), PRIVATE)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform() -> AsyncIterator[Platform]:
    """With an adapter that was trained on all words, published from its maker's version."""
    async with platform_world("press", "acme", "rival") as made:
        async with made.worker(), made.client("press") as press:
            labels = sorted(PUBLIC)
            await press.create_vplm("words", backbone="toy", pet=PET, labels=labels, seed=1)
            await press.upload_dataset("corpus", rows(slice(None), PUBLIC))
            job = await press.train("words", "corpus", epochs=40, **TRAINING)
            assert (await press.wait(job)).metrics["validation_accuracy"] > 0.8
            await press.set_alias("words", "public", 2)
        async with made.operator() as operator:
            await operator.publish_version(
                "news",
                "tenants/press/vplms/words/versions/2",
                display_name="Words of news",
                description="Which words are of the city, and which of nature.",
                license="CC-BY-4.0",
                source="https://example.org/news",
                tags={"domain": "news"},
            )
        yield made


async def accuracy(client: smile.AsyncClient, vplm: str) -> float:
    """On words that the tenant has no row of."""
    found = await client.infer(vplm, [row["text"] for row in OTHERS])
    answers = [prediction.result for prediction in found.predictions]
    right = sum(
        isinstance(answer, smile.Classification) and answer.label == row["label"]
        for answer, row in zip(answers, OTHERS, strict=True)
    )
    return right / len(OTHERS)


@ON_LOOP
async def test_a_tenant_with_few_rows_learns_from_a_public_adapter(platform: Platform) -> None:
    """The same rows, the same budget: once from the adapter, once from fresh weights."""
    labels = sorted(PRIVATE.values())
    async with platform.worker(), platform.client("acme") as acme:
        derived = await acme.derive_vplm("derived", "news", labels=labels, seed=1)
        await acme.create_vplm("scratch", backbone="toy", pet=PET, labels=labels, seed=1)
        await acme.upload_dataset("own", OWN_ROWS)
        scores = {}
        for name in ("derived", "scratch"):
            job = await acme.train(name, "own", epochs=12, validation_ratio=0.2, **TRAINING)
            done = await acme.wait(job)
            assert done.state is smile.JobState.SUCCEEDED
            assert done.base_version == (1 if name == "derived" else 0)
            scores[name] = await accuracy(acme, name)
        assert derived.spec.pet.kind is smile.PetKind.PFEIFFER
        assert derived.spec.head.labels == tuple(labels)
        first, second = [await acme.version("derived", number) for number in (1, 2)]
        assert first.origin is smile.VersionOrigin.ADAPTER
        assert first.derived_from is not None
        assert first.derived_from.name == "publicAdapters/news"
        assert first.derived_from.digest == (await acme.adapter("news")).digest
        assert (second.origin, second.derived_from) == (smile.VersionOrigin.TRAINING, None)
        diff = await acme.diff_versions("derived", 1, 2)
        assert diff.relative is not None and 0 < diff.relative < 1
    assert scores["derived"] > 0.85, scores
    assert scores["derived"] > scores["scratch"] + 0.15, scores


@ON_LOOP
async def test_the_catalogue_is_everybodys_and_the_operators_to_fill(platform: Platform) -> None:
    async with platform.client("rival") as rival, platform.operator() as operator:
        (listed,) = [a async for a in rival.adapters() if a.name.endswith("/news")]
        found = await rival.adapter("news")
        assert found == listed == await operator.adapter("publicAdapters/news")
        assert (found.license, found.source) == ("CC-BY-4.0", "https://example.org/news")
        assert (found.display_name, found.tags) == ("Words of news", {"domain": "news"})
        assert found.metrics["validation_accuracy"] > 0.8
        assert "press" not in repr(found), "whose it was is not told"
        for act in (
            lambda: rival.publish_version("mine", "tenants/press/vplms/words/versions/2"),
            lambda: rival.delete_adapter("news"),
        ):
            with pytest.raises(smile.PermissionDenied):
                await act()
        with pytest.raises(smile.NotFound):
            await rival.adapter("nothing")
        with pytest.raises(smile.NotFound):
            await rival.derive_vplm("x", "nothing")
        with pytest.raises(smile.AlreadyExists):
            await operator.publish_version("news", "tenants/press/vplms/words/versions/2")


@ON_LOOP
async def test_with_its_own_head_it_serves_at_once_and_its_bytes_are_shared(
    platform: Platform,
) -> None:
    async with platform.client("rival") as rival, platform.client("press") as press:
        before = (await rival.usage()).stored_bytes
        made = await rival.derive_vplm("as-is", "news", display_name="As it is", domain="sport")
        offered = await rival.adapter("news")
        version = await rival.version("as-is")
        assert made.spec == version.spec == replace(offered.spec, domain="sport")
        assert version.digest == offered.digest
        assert (await rival.usage()).stored_bytes - before < offered.size_bytes
        text = "the train is here"
        mine, theirs = await rival.infer("as-is", text), await press.infer("words", text)
        assert mine.digest == theirs.digest and mine.origin is smile.VersionOrigin.ADAPTER
        assert mine.predictions == theirs.predictions
        snapshot = await platform.store.snapshot()
        digests = [key for key in snapshot if offered.digest in key and "/rival/" in key]
        assert digests == []


@ON_LOOP
async def test_what_was_made_of_an_adapter_outlives_it(platform: Platform, tmp_path: Path) -> None:
    async with platform.client("acme") as acme, platform.operator() as operator:
        await operator.publish_version("brief", "tenants/press/vplms/words/versions/2")
        for name in ("kept", "other"):
            await acme.derive_vplm(name, "brief")
        await operator.delete_adapter("brief")
        with pytest.raises(smile.NotFound):
            await acme.derive_vplm("late", "brief")
        assert [a.name async for a in acme.adapters()] == ["publicAdapters/news"]
        got = await acme.download_version("kept", tmp_path / "w")
        assert hashlib.sha256((tmp_path / "w").read_bytes()).hexdigest() == got.digest
        await acme.delete_vplm("other", for_good=True)
        await acme.infer("kept", "the train is here")
        with pytest.raises(smile.NotFound):
            await operator.delete_adapter("brief")


@ON_LOOP
async def test_a_version_is_published_only_where_its_tenant_offers_it(platform: Platform) -> None:
    async with platform.operator() as operator:
        for name, error, reason in (
            (
                "tenants/press/vplms/words/versions/1",
                smile.FailedPrecondition,
                "VERSION_NOT_OFFERED",
            ),
            ("tenants/press/vplms/words/versions/9", smile.NotFound, "NOT_FOUND"),
            ("tenants/nobody/vplms/words/versions/1", smile.NotFound, "NOT_FOUND"),
        ):
            with pytest.raises(error) as caught:
                await operator.publish_version("secret", name)
            assert caught.value.reason == reason
        with pytest.raises(smile.NotFound):
            await operator.adapter("secret")


@ON_LOOP
async def test_a_folder_of_another_library_becomes_an_adapter(
    platform: Platform, tmp_path: Path
) -> None:
    files = write_toy_backbone(tmp_path / "toy")
    async with platform.client("press") as press, platform.operator() as operator:
        lora = smile.LoRA(rank=2)
        await press.create_vplm("lora", backbone="toy", pet=lora, labels=["a", "b"], seed=3)
        await press.export_vplm("lora", tmp_path / "peft", backbone_path=files)
        made = await operator.publish_adapter(
            "from-peft", tmp_path / "peft", backbone="toy", labels=["a", "b"], license="MIT"
        )
        assert made.spec.pet.kind is smile.PetKind.LORA
        assert made.digest == (await press.version("lora")).digest
        derived = await press.derive_vplm("again", "from-peft", task="embedding")
        assert derived.spec.head.task is smile.Task.EMBEDDING
        answer = await press.infer("again", "the train is here")
        assert isinstance(answer.predictions[0].result, smile.Embedding)
        with pytest.raises(smile.AlreadyExists):
            await operator.publish_adapter(
                "from-peft", tmp_path / "peft", backbone="toy", labels=["a", "b"]
            )
        await operator.delete_adapter("from-peft")


@ON_LOOP
async def test_requests_that_make_no_sense_are_refused(platform: Platform) -> None:
    async with platform.client("acme") as acme:
        checked = await acme.derive_vplm("dry", "news", labels=["x", "y"], validate_only=True)
        assert checked.spec.head.labels == ("x", "y")
        with pytest.raises(smile.NotFound):
            await acme.vplm("dry")
        with pytest.raises(smile.InvalidSpec):
            await acme.derive_vplm("dry", "news", labels=["x", "x"])
        await acme.derive_vplm("taken", "news")
        with pytest.raises(smile.AlreadyExists):
            await acme.derive_vplm("taken", "news")
        with pytest.raises(smile.AlreadyExists):
            await acme.derive_vplm("taken", "news", validate_only=True)
        request_id = "7d1f1f9e-3a52-4a5c-8f67-3d9a41c5f0a1"
        first = await acme.derive_vplm("twice", "news", labels=["x", "y"], request_id=request_id)
        again = await acme.derive_vplm("twice", "news", labels=["x", "y"], request_id=request_id)
        assert first == again


@ON_LOOP
async def test_a_vplm_begins_as_another_of_its_owners(platform: Platform) -> None:
    """With its head it is that version to the byte; with other labels training goes on from it."""
    async with platform.worker(), platform.client("press") as press:
        trained = await press.version("words", 2)
        copy = await press.derive_vplm("copy", base="words", display_name="A copy")
        first = await press.version("copy", 1)
        assert (first.digest, copy.spec) == (trained.digest, trained.spec)
        assert first.derived_from == smile.Derivation(trained.name, trained.digest)
        assert first.origin is smile.VersionOrigin.ADAPTER
        text = "the train is here"
        answers = [await press.infer(vplm, text) for vplm in ("words", "copy")]
        assert answers[0].predictions == answers[1].predictions

        untrained = f"{(await press.vplm('words')).name}/versions/1"
        older = await press.derive_vplm("older", base=untrained)
        assert (await press.version("older", 1)).digest == (await press.version("words", 1)).digest
        assert older.spec == copy.spec

        labels = sorted(PRIVATE.values())
        await press.derive_vplm("mine", base="words", labels=labels, seed=1)
        await press.upload_dataset("few", OWN_ROWS)
        done = await press.wait(await press.train("mine", "few", epochs=20, **TRAINING))
        assert done.base_version == 1
        assert await accuracy(press, "mine") > 0.8


@ON_LOOP
async def test_of_another_tenants_vplm_nobody_makes_anything(platform: Platform) -> None:
    async with platform.client("press") as press, platform.client("rival") as rival:
        theirs = (await press.vplm("words")).name
        for base in (theirs, f"{theirs}/versions/2", "words", f"{theirs}/versions/99"):
            with pytest.raises(smile.NotFound):
                await rival.derive_vplm("stolen", base=base)
        with pytest.raises(smile.NotFound):
            await press.derive_vplm("none", base=f"{theirs}/versions/99")
        with pytest.raises(smile.InvalidArgument):
            await press.derive_vplm("both", "news", base="words")
        with pytest.raises(smile.InvalidArgument):
            await press.derive_vplm("neither")
        request_id = "0f0e5a3e-6c8f-4c46-8a38-3a9ad1c3b7f2"
        first = await press.derive_vplm("again-mine", base="words", request_id=request_id)
        await press.set_alias("words", "serving", 1)
        try:
            again = await press.derive_vplm("again-mine", base="words", request_id=request_id)
        finally:
            await press.set_alias("words", "serving", 2)
        assert again == first
        checked = await press.derive_vplm("dry", base="words", validate_only=True)
        assert checked.spec == first.spec
        with pytest.raises(smile.NotFound):
            await press.vplm("dry")


@ON_LOOP
async def test_collecting_garbage_keeps_what_versions_share(platform: Platform) -> None:
    """Bytes that a version of the trash names stay; those that nothing names go."""
    async with platform.client("acme") as acme, platform.operator() as operator:
        await acme.create_vplm("own", backbone="toy", pet=PET, labels=["a", "b"], seed=99)
        await acme.set_alias("own", "public", 1)
        adapter = await operator.publish_version("mine", "tenants/acme/vplms/own/versions/1")
        await acme.derive_vplm("sharing", "mine")
        await operator.delete_adapter("mine")
        blob = f"publicBlobs/{adapter.digest}"
        await acme.delete_vplm("sharing")
        references = References(platform.store)
        assert await references.to(place_of(blob))
        await acme.undelete_vplm("sharing")
        await acme.infer("sharing", "the train is here")
        await acme.delete_vplm("sharing", for_good=True)
        assert not await references.to(place_of(blob))


def test_the_shell_does_the_same(tmp_path: Path) -> None:
    """Typed by an operator and a tenant."""
    with world_in_thread("acme") as world:
        runner = CliRunner()
        folder = tmp_path / "module"

        def typed(key: str, *words: str, code: int = 0) -> Any:
            environment = {"SMILE_API_KEY": key, "SMILE_ENDPOINTS": world.endpoints}
            done = runner.invoke(build(), [*words, "-o", "json"], env=environment)
            assert done.exit_code == code, (words, done.output)
            return json.loads(done.stdout) if done.stdout else None

        key, operator = world.keys["acme"], world.operator_key
        made = ("create", "topic", "--backbone", "toy", "--labels", "a,b", "--rank", "4")
        typed(key, "vplms", *made)
        typed(key, "vplms", "export", "topic", str(folder), "--format", "smile")
        published = typed(
            operator, "adapters", "publish", "base", str(folder), "--backbone", "toy",
            "--license", "MIT", "--tag", "domain=news",
        )  # fmt: skip
        assert published["name"] == "publicAdapters/base" and published["license"] == "MIT"
        typed(key, "adapters", "publish", "mine", str(folder), "--backbone", "toy", code=5)
        assert [a["name"] for a in typed(key, "adapters", "list")["adapters"]] == [
            "publicAdapters/base"
        ]
        assert typed(key, "adapters", "show", "base")["tags"] == {"domain": "news"}
        derived = typed(key, "vplms", "create", "mine", "--from-adapter", "base", "--labels", "x,y")
        assert derived["spec"]["head"]["labels"] == ["x", "y"]
        assert typed(key, "create", "same", "--from-adapter", "base")["spec"] == published["spec"]
        (version,) = typed(key, "versions", "list", "same")["versions"]
        assert version["derived_from"]["name"] == "publicAdapters/base"
        typed(key, "create", "no", "--from-adapter", "base", "--rank", "3", code=2)
        typed(key, "create", "no", code=2)
        typed(key, "create", "no", "--from-adapter", "nothing", code=4)
        again = typed(key, "create", "again", "--from-vplm", "same")
        assert again["spec"] == published["spec"]
        version = f"{derived['name']}/versions/1"
        relabelled = typed(key, "create", "third", "--from-vplm", version, "--labels", "u,v,w")
        assert relabelled["spec"]["head"]["labels"] == ["u", "v", "w"]
        typed(key, "create", "no", "--from-vplm", "same", "--from-adapter", "base", code=2)
        typed(key, "create", "no", "--from-vplm", "nothing", code=4)
        assert typed(operator, "adapters", "delete", "base") == {"deleted": "base"}
        typed(operator, "adapters", "delete", "base", code=4)
        typed(operator, "adapters", "publish", "base", code=2)
