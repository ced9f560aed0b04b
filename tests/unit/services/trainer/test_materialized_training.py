"""Training on rows of n-grams in place of lower layers: on them alone, or row by row on either."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from services.trainer.standins import StandIn, StandIns
from services.trainer.training.loop import Training, train
from services.trainer.training.loop_events import Planned
from services.trainer.training.lowering import late_lowering, lowering
from services.trainer.training.objectives import NothingFinite
from services.trainer.training.precision import Precision
from services.trainer.training.run import MIXED_SHARE, Run, TrainingInput
from services.trainer.training.states import EntryStates, MakeLower, StatesRoom, TwoStates
from services.trainer.worker.provenance import RunSpec
from smile.errors import DataCorrupted, FailedPrecondition, Unavailable
from smile.model.backbone import Backbone
from smile.model.batched import Lower
from smile.model.initial import initial_tensors
from smile.model.materialized import NoRows, RowsBelow
from smile.model.ngram_rows import RowDtype
from smile.model.reference import VplmModule
from smile.model.skip import artifact
from smile.model.skip.rows import EncoderRows
from smile.model.specs import PetKind, PetSpec, Projection, Task
from smile.model.toy import write_toy_backbone
from smile.representations import manifest
from smile.representations.snapshot import Table
from smile.resources import ColumnMapping, HyperParameters, TrainingStates
from smile.standins import INCLUDED, StandInPlace
from tests.contract.materialized_world import Encoder
from tests.unit.services.trainer.test_loop import PFEIFFER, QUICK, consumed, digest, spec, texts
from tests.unit.services.trainer.test_loop import given as exactly
from tests.unit.services.trainer.test_resuming import same
from tests.unit.services.trainer.test_states import TEXTS

KINDS = [
    PFEIFFER,
    PetSpec(PetKind.HOULSBY, rank=8),
    PetSpec(PetKind.LORA, 2, rank=4, alpha=8, targets=(Projection.QUERY, Projection.VALUE)),
    PetSpec(PetKind.NONE),
]
OTHER = (TrainingStates.MATERIALIZED, TrainingStates.MIXED)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = tmp_path_factory.mktemp("toy")
    return Encoder.make(Backbone.load(write_toy_backbone(folder), "toy"), folder / "encoder")


def stand_in(encoder: Encoder, table: Path | None = None) -> StandIn:
    stand_ins = StandIns({"toy": StandInPlace(encoder.path, table)})
    return stand_ins.of(spec(encoder.backbone, PFEIFFER, Task.SEQUENCE_CLASSIFICATION))


def given(
    encoder: Encoder,
    states: TrainingStates,
    *,
    pet: PetSpec = PFEIFFER,
    task: Task = Task.SEQUENCE_CLASSIFICATION,
    values: HyperParameters = QUICK,
    table: Path | None = None,
) -> TrainingInput:
    run = exactly(encoder.backbone, texts(80), replace(values, states=states), pet=pet, task=task)
    made = lowering(stand_in(encoder, table), encoder.backbone, Precision.FLOAT32)
    return replace(run, lower=made)


def module_of(encoder: Encoder, pet: PetSpec = PFEIFFER) -> VplmModule:
    of = spec(encoder.backbone, pet, Task.SEQUENCE_CLASSIFICATION)
    return VplmModule(encoder.backbone, of, initial_tensors(of, encoder.backbone.shape, 0))


@pytest.mark.parametrize("pet", KINDS, ids=lambda pet: pet.kind)
def test_states_are_those_that_materialised_answers_stand_on(
    encoder: Encoder, pet: PetSpec
) -> None:
    module = module_of(encoder, pet)
    made = lowering(stand_in(encoder), encoder.backbone, Precision.FLOAT32)
    states = EntryStates(module, TEXTS, StatesRoom(), lower=made)
    text = "the bank sold a goal"
    (tokens,) = encoder.backbone.tokenizer.encode([text])
    states.texts = [*TEXTS, tuple(tokens.ids)]
    list(states.fill())
    found = module.forward_entered(*states.of([len(TEXTS)])).softmax(dim=-1)
    assert np.allclose(found.detach().numpy(), encoder.expected(module, text), atol=2e-3)
    exact = EntryStates(module, states.texts, StatesRoom()).of([len(TEXTS)])[0]
    assert not torch.allclose(states.of([len(TEXTS)])[0], exact, atol=1e-2)


def test_a_table_changes_no_bit(encoder: Encoder, tmp_path: Path) -> None:
    run = given(encoder, TrainingStates.MATERIALIZED)
    for dtype in RowDtype:
        seen = [example.text for example in texts(30)]
        table = encoder.table(tmp_path / dtype, seen, dtype)
        whole = encoder.table(tmp_path / f"{dtype}-all", [e.text for e in texts(80)], dtype)
        both = [given(encoder, TrainingStates.MATERIALIZED, table=one) for one in (table, whole)]
        assert digest(both[0]) == digest(both[1])
        assert (digest(both[0]) == digest(run)) is (dtype is RowDtype.FLOAT16)
        (table / "keys.bin").write_bytes(b"damaged")
        assert digest(given(encoder, TrainingStates.MATERIALIZED, table=table)) == digest(both[1])
        rows = bytearray((whole / "rows.bin").read_bytes())
        rows[1::2] = bytes(byte ^ 64 for byte in rows[1::2])
        (whole / "rows.bin").write_bytes(rows)
        assert digest(given(encoder, TrainingStates.MATERIALIZED, table=whole)) == digest(both[0])


@pytest.mark.parametrize("states", OTHER)
@pytest.mark.parametrize("task", [Task.SEQUENCE_CLASSIFICATION, Task.EMBEDDING])
def test_it_learns_and_tells_both_kinds(
    encoder: Encoder, states: TrainingStates, task: Task
) -> None:
    values = replace(QUICK, validation_ratio=0.15, epochs=20, batch_size=8)
    run = given(encoder, states, task=task, values=values)
    _, trained = consumed(train(run))
    name = "accuracy" if task is Task.SEQUENCE_CLASSIFICATION else "recall_at_1"
    metrics = trained.metrics
    own = metrics[f"validation_{name}"]
    if task is Task.SEQUENCE_CLASSIFICATION:
        assert own >= 0.65, "rows are of random weights, and chance is a half"
    assert trained.summary.states is states
    if states is TrainingStates.MATERIALIZED:
        assert f"validation_{name}_materialized" not in metrics
        assert 0 <= metrics[f"validation_{name}_exact"] <= 1
    else:
        kinds = [metrics[f"validation_{name}_{kind}"] for kind in ("exact", "materialized")]
        assert own == pytest.approx(sum(kinds) / 2)


def whole(encoder: Encoder, table: Path) -> MakeLower:
    """What answers stand on: words' parts of the whole vocabulary, and a table."""
    rows = EncoderRows.of(artifact.read(encoder.path), encoder.backbone)
    return lambda: RowsBelow(rows.encoder, Table.open(table, rows.origin))


def look(encoder: Encoder, table: Path | None = None) -> MakeLower:
    """What a job on exact states measures with."""
    return late_lowering(lambda: stand_in(encoder, table), encoder.backbone, Precision.FLOAT32)


@pytest.mark.parametrize("task", [Task.SEQUENCE_CLASSIFICATION, Task.EMBEDDING])
def test_exact_training_tells_how_it_does_looked_up(
    encoder: Encoder, tmp_path: Path, task: Task
) -> None:
    few = replace(QUICK, validation_ratio=0.15)
    run = given(encoder, TrainingStates.EXACT, values=few, task=task)
    _, alone = consumed(train(replace(run, lower=None)))
    names = {name for name in alone.metrics if name.startswith("validation_")}
    extra = {f"{name}_materialized" for name in names - {"validation_rows"}}
    for dtype in RowDtype:
        table = encoder.table(tmp_path / dtype, [e.text for e in texts(40)], dtype)
        _, expected = consumed(train(replace(run, lower=whole(encoder, table))))
        _, found = consumed(train(replace(run, lower=look(encoder, table))))
        assert found.metrics == expected.metrics and found.unmeasured is None
        assert found.metrics.keys() - alone.metrics.keys() == extra
        assert found.metrics["validation_loss_materialized"] != alone.metrics["validation_loss"]
    assert digest(replace(run, lower=look(encoder))) == digest(replace(run, lower=None))


def test_much_to_validate_on_is_not_looked_at_twice(encoder: Encoder) -> None:
    asked: list[bool] = []

    def made() -> Lower:
        asked.append(True)
        return look(encoder)()

    for ratio in (0.5, 0.15):
        values = replace(QUICK, validation_ratio=ratio)
        run = given(encoder, TrainingStates.EXACT, values=values)
        _, trained = consumed(train(replace(run, lower=made)))
        named = [name for name in trained.metrics if name.endswith("_materialized")]
        assert bool(named) is bool(asked) is (ratio < 0.5), "it would not be cheap"
    assert len(asked) == 1


@pytest.mark.parametrize(
    "fault", [DataCorrupted("bad"), Unavailable("away"), PermissionError(13, "no"), NothingFinite()]
)
def test_what_is_only_told_fails_no_training(encoder: Encoder, fault: Exception) -> None:
    def broken() -> Lower:
        raise fault

    few = replace(QUICK, validation_ratio=0.15)
    run = given(encoder, TrainingStates.EXACT, values=few)
    _, trained = consumed(train(replace(run, lower=broken)))
    _, alone = consumed(train(replace(run, lower=None)))
    assert trained.unmeasured is fault and alone.unmeasured is None
    assert trained.metrics == alone.metrics
    with pytest.raises(type(fault)):
        consumed(train(given_broken(encoder, broken)))


def given_broken(encoder: Encoder, broken: MakeLower) -> TrainingInput:
    """Materialised states are more than told."""
    return replace(given(encoder, TrainingStates.MATERIALIZED), lower=broken)


def test_a_fault_of_ours_is_not_hidden(encoder: Encoder) -> None:
    def broken() -> Lower:
        raise ValueError("ours")

    few = replace(QUICK, validation_ratio=0.15)
    with pytest.raises(ValueError, match="ours"):
        consumed(train(replace(given(encoder, TrainingStates.EXACT, values=few), lower=broken)))


@pytest.mark.parametrize("states", OTHER)
def test_it_goes_on_as_if_nothing_had_been(encoder: Encoder, states: TrainingStates) -> None:
    every = replace(QUICK, epochs=3, batch_size=16, learning_rate=0.02)
    same(given(encoder, states, values=every), (2, 5))
    same(replace(given(encoder, states, values=every), room=StatesRoom(0)), (7,))


@pytest.mark.parametrize("states", OTHER)
def test_where_states_lie_makes_no_difference(
    encoder: Encoder, states: TrainingStates, tmp_path: Path
) -> None:
    run = given(encoder, states)
    rooms = [StatesRoom(), StatesRoom(40_000, 40_000, tmp_path), StatesRoom(0)]
    assert len({digest(replace(run, room=room)) for room in rooms}) == 1


def test_mixed_rows_are_drawn_anew_each_epoch_and_alike_each_time(encoder: Encoder) -> None:
    def drawn(seed: int, epoch: int) -> list[bool]:
        run = given(encoder, TrainingStates.MIXED, values=replace(QUICK, seed=seed))
        made = _run(run)
        made._epoch = epoch
        count = len(made._data.corpus.texts)
        return [row.texts[0] >= count for row in made._rows_of_epoch()]

    assert drawn(1, 1) == drawn(1, 1)
    assert drawn(1, 1) != drawn(1, 2) and drawn(1, 1) != drawn(2, 1)
    share = sum(drawn(1, 1) + drawn(1, 2) + drawn(2, 1)) / (3 * len(drawn(1, 1)))
    assert share == pytest.approx(MIXED_SHARE, abs=0.15)


def _run(given: TrainingInput) -> Run:
    training = Training(given)
    events = training.events()
    while not isinstance(next(events), Planned):
        pass
    assert training._run is not None
    return training._run


def test_two_kinds_lie_side_by_side(encoder: Encoder) -> None:
    module = module_of(encoder)
    made = lowering(stand_in(encoder), encoder.backbone, Precision.FLOAT32)
    exact = EntryStates(module, TEXTS, StatesRoom())
    rows = EntryStates(module, TEXTS, StatesRoom(), lower=made)
    both = TwoStates(exact, rows, both=True)
    told = list(both.fill())
    assert told == sorted(told) and told[-1] == both.kept == len(TEXTS)
    asked = [3, 9, 0, 6, 3]
    states, packed = both.of(asked)
    assert packed.lengths == tuple(len(TEXTS[text % 6]) for text in asked)
    for text, part in zip(asked, states.split(packed.lengths), strict=True):
        assert torch.equal(part, (exact, rows)[text >= 6].of([text % 6])[0])
    both.close()
    assert both.kept == 0


def test_what_cannot_be_trained_so_is_refused(encoder: Encoder) -> None:
    of = spec(encoder.backbone, PFEIFFER, Task.SEQUENCE_CLASSIFICATION)
    here = StandIns({"toy": StandInPlace(encoder.path)})
    below = replace(of, pet=replace(of.pet, first_layer=1))
    elsewhere = replace(of, backbone_digest="0" * 64)
    refused = [
        (StandIns(), of, "NOT_MATERIALIZED"),
        (here, below, "MODULE_BELOW_BOUNDARY"),
        (here, replace(of, domain="sport"), "DOMAIN_NOT_SERVED"),
        (here, elsewhere, "BACKBONE_MISMATCH"),
        (StandIns({"toy": StandInPlace(INCLUDED)}), of, "NOT_MATERIALIZED"),
    ]
    for stand_ins, wanted, reason in refused:
        for states in OTHER:
            with pytest.raises(FailedPrecondition) as caught:
                stand_ins.check(wanted, states)
            assert caught.value.reason == reason
        with pytest.raises(FailedPrecondition) as caught:
            stand_ins.of(wanted)
        assert caught.value.reason == reason
        stand_ins.check(wanted, TrainingStates.EXACT)


def test_states_and_encoder_are_part_of_what_decides_weights(encoder: Encoder) -> None:
    of = spec(encoder.backbone, PFEIFFER, Task.SEQUENCE_CLASSIFICATION)

    def told(states: TrainingStates, encoder: str = "") -> str:
        values = HyperParameters(states=states)
        return RunSpec(of, ColumnMapping(), values, "d", encoder=encoder).digest

    digests = {told(states, one) for states in OTHER for one in ("a:float16", "b:float16")}
    assert len(digests) == 4
    assert told(TrainingStates.EXACT) not in digests
    assert told(TrainingStates.EXACT) == told(TrainingStates.EXACT, "a:float16")


def test_rows_of_other_bits_are_computed_again(encoder: Encoder, tmp_path: Path) -> None:
    """Of another precision or by other kernels, or nobody knows of which."""
    run = given(encoder, TrainingStates.MATERIALIZED)
    seen = [example.text for example in texts(80)]
    stated = encoder.stand_in.origin
    assert stated.precision == "float32" and stated.kernels.startswith("cpu:")
    for name, changed in (
        ("precision", replace(stated, precision="bfloat16")),
        ("kernels", replace(stated, kernels="cpu:other")),
        ("nobody knows", replace(stated, precision="", kernels="")),
    ):
        folder = encoder.table(tmp_path / name, seen)
        told = manifest.read(folder)
        assert told.origin == stated and not told.origin.same_bits(stated)
        told = replace(told, origin=changed)
        (folder / manifest.MANIFEST_FILE).write_bytes(told.encode())
        assert manifest.read(folder) == told, "it is a manifest all the same"
        assert told.origin.same_bits(stated)
        rows = lowering(stand_in(encoder, folder), encoder.backbone, Precision.FLOAT32)()
        assert isinstance(rows, RowsBelow) and isinstance(rows.rows, NoRows)
        other = given(encoder, TrainingStates.MATERIALIZED, table=folder)
        assert digest(other) == digest(run)


def test_a_manifest_from_before_precisions_were_told_keeps_its_digest(
    encoder: Encoder, tmp_path: Path
) -> None:
    folder = encoder.table(tmp_path / "table", ["a goal"])
    told = manifest.read(folder)
    old = replace(told, origin=replace(told.origin, precision="", kernels=""))
    body = json.loads(old.encode())
    assert not {"precision", "kernels"} & body["origin"].keys()
    assert manifest.decode(old.encode()).digest == old.digest
