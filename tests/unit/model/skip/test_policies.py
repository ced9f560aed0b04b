"""Two policies for n-grams that no table has, each with the rows it learned to be served by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from smile.errors import DataCorrupted, InvalidArgument
from smile.model.backbone import Backbone
from smile.model.kernels import kernels_for
from smile.model.packing import pack
from smile.model.skip import artifact
from smile.model.skip.artifact import EncoderFacts
from smile.model.skip.distill.corpus import cut
from smile.model.skip.distill.documents import Document, split_documents
from smile.model.skip.distill.dropout import shortened
from smile.model.skip.distill.run import Distillation, Distilled, Job
from smile.model.skip.distill.settings import DistillSettings
from smile.model.skip.encoder import LocalEncoder
from smile.model.skip.form import EncoderForm
from smile.model.skip.networks import TrigramLayers
from smile.model.skip.ngrams import ANY, ID_BITS, keys_of, ngram_keys, ngrams_from
from smile.model.skip.policy import MissPolicy, RowKind
from smile.model.skip.rows import EncoderRows
from smile.model.skip.serving import ServingEncoder
from smile.model.toy import WORDS
from smile.representations.__main__ import main as build_tables
from smile.representations.fallback import served
from smile.representations.keys import keys_of_texts, pack_keys
from smile.representations.snapshot import Table

CPU = torch.device("cpu")
SETTINGS = DistillSettings(
    boundary=2, first=24, middle=24, after=16, context=4, epochs=3, rate=5e-3, batch_tokens=256,
    passage_tokens=48, policy=MissPolicy.SHORTER,
)  # fmt: skip


def encoder_of(toy: Backbone, kind: RowKind) -> LocalEncoder:
    torch.manual_seed(2)
    encoder = LocalEncoder(replace(SETTINGS, rows=kind).form(toy.shape), toy)
    encoder.start_from(toy)
    return encoder


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    words = [word for word in WORDS if not word.startswith("#")]
    drawn = np.random.default_rng(4)
    return [
        Document(". ".join(" ".join(drawn.choice(words, 7)).capitalize() for _ in range(3)) + ".")
        for _ in range(60)
    ]


@torch.no_grad()
def test_layers_begin_as_the_backbones(toy: Backbone) -> None:
    """A trigram is a text of three tokens, a bigram one of two: nothing attends to what is not
    there, and nothing is said of it."""
    network = encoder_of(toy, RowKind.LAYERS).network
    assert isinstance(network, TrigramLayers)
    for text in ([7, 8, 9], [7, 8]):
        packed = pack([text])
        states = toy.forward_layers(toy.embed(packed), packed, 0, 2)
        (row,) = network.rows(torch.tensor([[*text, ANY][:3]])).view(1, 3, -1)
        torch.testing.assert_close(row[: len(text)], states / 2, atol=1e-5, rtol=0)
        assert not row[len(text) :].any()


@pytest.mark.parametrize("kind", RowKind)
@torch.no_grad()
def test_neighbours_left_out_say_nothing(toy: Backbone, kind: RowKind) -> None:
    encoder = encoder_of(toy, kind)
    full, bigram, unigram = encoder.rows(torch.tensor([[7, 8, 9], [7, 8, ANY], [ANY, 8, ANY]]))
    assert not torch.equal(full, bigram) and not torch.equal(bigram, unigram)
    alone = encoder.rows(torch.tensor([[7, 8, ANY]]))[0]
    torch.testing.assert_close(alone, bigram, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", RowKind)
@torch.no_grad()
def test_serving_is_training(toy: Backbone, kind: RowKind, dtype: torch.dtype) -> None:
    encoder = encoder_of(toy, kind)
    serving = ServingEncoder.of(encoder, kernels_for(CPU, dtype), CPU, dtype)
    ngrams = torch.randint(5, 60, (40, 3))
    rows = serving.rows(ngrams)
    assert rows.dtype is dtype
    tolerance = 1e-5 if dtype is torch.float32 else 0.06
    torch.testing.assert_close(rows.float(), encoder.rows(ngrams), atol=tolerance, rtol=0)


def test_dropout_is_a_table_that_has_a_part(toy: Backbone) -> None:
    packed = pack([list(range(5, 60))] * 40)
    keys = ngram_keys(packed, 0)
    found = shortened(keys, 0.5, seed=1, step=3)
    assert torch.equal(found, shortened(keys, 0.5, seed=1, step=3))
    assert not torch.equal(found, shortened(keys, 0.5, seed=1, step=4))
    ngrams, serving = ngrams_from(keys), ngrams_from(found)
    assert torch.equal(serving[:, 1], ngrams[:, 1])
    no_left, no_right = serving[:, 0] == ANY, serving[:, 2] == ANY
    assert bool((no_right | ~no_left).all()) and 0 < int(no_left.sum()) < int(no_right.sum())
    assert torch.equal(serving[~no_right], ngrams[~no_right])
    for text in found.view(40, -1):  # equal trigrams of a batch meet one fate, as with a table
        assert torch.equal(text, found.view(40, -1)[0])
    assert torch.equal(shortened(keys, 0.0, 1, 3), keys)
    assert bool((shortened(keys, 1.0, 1, 3) == (keys | ANY | ANY << 2 * ID_BITS)).all())


def test_what_serves_is_the_longest_that_was_learned_from() -> None:
    known = keys_of_texts([[5, 6, 7, 8]], 0)
    asked = pack_keys(*np.array([[5, 6, 7], [5, 6, 9], [4, 6, 7], [1, 2, 3]], np.int64).T)
    found = ngrams_from(torch.from_numpy(served(MissPolicy.SHORTER, asked, known, 20)))
    assert found.tolist() == [[5, 6, 7], [5, 6, ANY], [ANY, 6, ANY], [ANY, 2, ANY]]
    assert (served(MissPolicy.COMPUTE, asked, known, 20) == asked).all()


@pytest.mark.parametrize("kind", RowKind)
def test_both_are_distilled_and_judged_alike(
    toy: Backbone, documents: Sequence[Document], kind: RowKind, tmp_path: Path
) -> None:
    learned, held_out = split_documents(documents, 0.2, seed=1)
    own, others = (cut(part, toy.tokenizer, 48) for part in (learned, held_out))

    def distil(settings: DistillSettings) -> Distilled:
        name = f"{settings.policy}-{settings.epochs}"
        running = Distillation(Job(toy, settings, own, others, "made up", tmp_path / name))
        list(running.events())
        return running.result()

    for policy in MissPolicy:
        settings = replace(SETTINGS, rows=kind, policy=policy)
        (tmp_path / f"{policy}-{settings.epochs}").mkdir()
        done = distil(settings)
        assert done.file.facts.policy is policy and done.file.facts.form.kind is kind
        assert artifact.decode(done.data).facts == done.file.facts
        again = distil(settings)  # from its last checkpoint
        assert again.data == done.data
        assert done.curve[-1].loss < done.curve[0].loss


def test_a_table_has_shorter_rows_where_they_serve(toy: Backbone) -> None:
    for kind in RowKind:
        encoder = encoder_of(toy, kind)
        arrays = {name: tensor.numpy() for name, tensor in encoder.tensors().items()}
        facts = EncoderFacts("toy", toy.digest, encoder.form, policy=MissPolicy.SHORTER)
        file = artifact.decode(artifact.encode(facts, arrays))
        made = EncoderRows.of(file, toy)
        assert made.policy is MissPolicy.SHORTER
        keys = keys_of(torch.tensor([[7, 8, 9], [7, 8, ANY], [ANY, 8, ANY], [9, 9, 9]]))
        rows = made.format.unpack(made.packed(keys.numpy(), made.format))
        expected = LocalEncoder.of(file, toy).rows(ngrams_from(keys))
        np.testing.assert_allclose(rows, expected.detach().numpy(), atol=2e-3)


def test_what_fits_no_kind_is_refused(toy: Backbone) -> None:
    with pytest.raises(InvalidArgument, match="wide must be between 1"):
        EncoderForm(2, 32, 0, 0, 16, layers=2)
    with pytest.raises(InvalidArgument, match="first must be between 0 and 0"):
        EncoderForm(2, 32, 8, 8, 16, layers=2, wide=8)
    with pytest.raises(InvalidArgument, match=r"dropout must be between 0 and 1, got 1\.5"):
        replace(SETTINGS, dropout=1.5)
    encoder = encoder_of(toy, RowKind.WORDS)
    arrays = {name: tensor.numpy() for name, tensor in encoder.tensors().items()}
    data = artifact.encode(EncoderFacts("toy", toy.digest, encoder.form), arrays)
    with pytest.raises(DataCorrupted, match="facts are wrong"):
        artifact.decode(
            data.replace(b'\\"policy\\": \\"compute\\"', b'\\"policy\\": \\"nothing\\"')
        )


def test_the_command_builds_what_the_policy_wants(
    toy_path: Path, toy: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unigrams of the whole vocabulary where shorter n-grams serve; a budget must have room."""
    (tmp_path / "corpus.txt").write_text("the movie was good and the story was sad\n")
    for policy in MissPolicy:
        encoder = encoder_of(toy, RowKind.WORDS)
        arrays = {name: tensor.numpy() for name, tensor in encoder.tensors().items()}
        facts = EncoderFacts("toy", toy.digest, encoder.form, policy=policy)
        (tmp_path / "encoder").write_bytes(artifact.encode(facts, arrays))
        asked = [
            "--backbone", f"toy=dir:{toy_path}", "--encoder", str(tmp_path / "encoder"),
            "--corpus", str(tmp_path / "corpus.txt"), "--output", str(tmp_path / policy),
        ]  # fmt: skip
        assert build_tables([*asked, "--budget-bytes", str(1 << 24)]) == 0
        keys = Table.open(tmp_path / policy).keys
        unigrams = int(((keys & ANY) == ANY).sum())
        assert (unigrams >= toy.info.vocab) is (policy is MissPolicy.SHORTER)
    asked[-1] = str(tmp_path / "small")
    assert build_tables([*asked, "--budget-bytes", "4096"]) == 1
    assert "unigrams of the vocabulary" in capsys.readouterr().out
