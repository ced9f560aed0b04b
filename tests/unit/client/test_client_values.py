"""The client's pure parts: settings, names, PET kinds, keywords, waits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import smile
from smile import codec
from smile.client import options as o
from smile.client.inference import checked
from smile.client.retry import Backoff
from smile.client.scope import Scope
from smile.client.settings import ClientSettings, Endpoints
from smile.client.training import JobFailed, _Patience
from smile.errors import InvalidSpec
from smile.names import TenantId
from smile.testing import FakeClock

KEY = f"smile_acme_k{'a' * 15}_{'s' * 43}"
ROOT = Path(__file__).resolve().parents[3]
MINE = Scope(TenantId("acme"))
NOBODY = Scope(None)


def test_endpoints_are_read_and_default_to_this_machine() -> None:
    assert Endpoints.parse("") == Endpoints()
    assert Endpoints().creator == "localhost:7102"
    parsed = Endpoints.parse(" creator=a:1 , processor=[::1]:2,")
    assert parsed == Endpoints(creator="a:1", processor="[::1]:2")


@pytest.mark.parametrize(
    "text", ["a:1", "gateway=a:1", "creator=", "creator=a:1,creator=b:2", "=x"]
)
def test_malformed_endpoints_are_refused(text: str) -> None:
    with pytest.raises(smile.InvalidArgument, match="storage, creator, trainer, processor"):
        Endpoints.parse(text)


def test_arguments_go_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMILE_API_KEY", "from-environment")
    monkeypatch.setenv("SMILE_ENDPOINTS", "trainer=e:1")
    assert ClientSettings.of(None, None).api_key == "from-environment"
    assert ClientSettings.of(None, None).endpoints.trainer == "e:1"
    given_ = ClientSettings.of(f" {KEY}\n", "trainer=a:2")
    assert (given_.api_key, given_.endpoints.trainer) == (KEY, "a:2")
    assert ClientSettings.of("x", Endpoints(storage="s:1")).endpoints.storage == "s:1"
    monkeypatch.delenv("SMILE_API_KEY")
    with pytest.raises(smile.Unauthenticated, match="SMILE_API_KEY"):
        ClientSettings.of(None, None)


@pytest.mark.parametrize(
    "key", ["x", "smile_acme", KEY[:-1], KEY.replace("acme", "Acme"), "a_b_c_d"]
)
def test_malformed_keys_are_refused_before_any_call(key: str) -> None:
    with pytest.raises(smile.Unauthenticated):
        smile.AsyncClient(key)


def test_short_ids_full_names_and_mine_mean_the_same() -> None:
    full = "tenants/acme/vplms/topic"
    for text in ("topic", full, "tenants/-/vplms/topic"):
        assert str(MINE.vplm(text)) == full
    assert str(MINE.version("topic", 3)) == f"{full}/versions/3"
    assert str(MINE.servable(f"{full}/versions/3")) == f"{full}/versions/3"
    assert str(MINE.servable("tenants/-/vplms/topic/versions/3")) == f"{full}/versions/3"
    assert str(MINE.servable("topic")) == full
    assert str(MINE.dataset("d")) == "tenants/acme/datasets/d"
    assert str(MINE.job("tenants/-/trainingJobs/j")) == "tenants/acme/trainingJobs/j"
    assert str(MINE.api_key("kx")) == "tenants/acme/apiKeys/kx"
    assert str(MINE.backbone("minilm")) == str(MINE.backbone("backbones/minilm"))
    assert [str(MINE.parent(t)) for t in (None, "acme", "tenants/-", "bulk")] == [
        "tenants/acme", "tenants/acme", "tenants/acme", "tenants/bulk",
    ]  # fmt: skip


def test_an_operator_needs_full_names() -> None:
    assert str(NOBODY.vplm("tenants/acme/vplms/topic")) == "tenants/acme/vplms/topic"
    for call in (lambda: NOBODY.vplm("topic"), NOBODY.parent, lambda: NOBODY.job("tenants/-/x/y")):
        with pytest.raises(smile.InvalidArgument, match="no tenant of its own"):
            call()


@given(st.text(max_size=80))
def test_any_text_is_a_good_name_or_refused_as_one(text: str) -> None:
    for parse in (MINE.vplm, MINE.dataset, MINE.job, MINE.api_key, MINE.backbone, MINE.servable):
        try:
            name = str(parse(text))
        except smile.InvalidName as error:
            assert len(error.message) < 300
        else:
            assert name == name.lower().strip().replace("trainingjobs", "trainingJobs").replace(
                "apikeys", "apiKeys"
            )


def test_pet_kinds_have_the_defaults_of_the_platform() -> None:
    assert smile.Pfeiffer() == smile.PetSpec(smile.PetKind.PFEIFFER, None, 24)
    assert smile.Houlsby(8, first_layer=1) == smile.PetSpec(smile.PetKind.HOULSBY, 1, 8)
    assert smile.BitFit() == smile.PetSpec(smile.PetKind.BITFIT)
    assert smile.NoPet() == smile.PetSpec(smile.PetKind.NONE)
    diff = smile.PetSpec(smile.PetKind.DIFF_PRUNING, density=0.005)
    assert smile.DiffPruning() == diff
    mask = smile.PetSpec(smile.PetKind.MASK_BERT, 2, density=0.05)
    assert smile.MaskBert(first_layer=2) == mask
    lora = smile.LoRA(4, targets=["output", "key"])
    assert (lora.alpha, lora.targets) == (8.0, (smile.Projection.KEY, smile.Projection.OUTPUT))
    assert smile.LoRA(4, alpha=3).alpha == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: smile.LoRA(targets=["query", "logits"]), "got 'logits'"),
        (lambda: smile.LoRA(targets=[]), "at least one target"),
        (lambda: smile.LoRA(targets=["key", "key"]), "repeat"),
        (lambda: smile.LoRA(0), "between 1 and 1024 for kind 'lora', got 0"),
        (lambda: smile.LoRA(alpha=-1), "alpha must be positive"),
        (lambda: smile.Pfeiffer(1025), "got 1025"),
        (lambda: smile.MaskBert(0.06), "at most 0.05 for kind 'mask-bert', got 0.06"),
        (lambda: smile.DiffPruning(0), "above 0"),
        (lambda: smile.PetSpec(smile.PetKind.BITFIT, density=0.01), "'bitfit' has no density"),
        (lambda: smile.BitFit(first_layer=-1), "first_layer must be >= 0, got -1"),
    ],
)
def test_bad_pet_kinds_are_refused(make: Any, message: str) -> None:
    with pytest.raises(smile.InvalidSpec, match=message):
        make()


def test_hyper_parameters_are_the_given_ones_over_the_defaults() -> None:
    assert o.hyper_parameters({}) == smile.HyperParameters()
    changed = o.hyper_parameters({"epochs": 2, "schedule": "cosine", "weight_decay": 0.0})
    assert changed == smile.HyperParameters(
        epochs=2, schedule=smile.Schedule.COSINE, weight_decay=0.0
    )


def test_every_hyper_parameter_is_a_keyword_of_train() -> None:
    assert set(smile.HyperParameters.__dataclass_fields__) <= set(o.TrainOptions.__annotations__)


def test_promotion_defaults_to_serving_and_none_means_none() -> None:
    assert o.job("v", "d", "", {}).promote_alias == smile.SERVING
    assert o.job("v", "d", "", {"promote_alias": None}).promote_alias == ""
    assert o.job("v", "d", "", {"promote_alias": "canary"}).promote_alias == "canary"


def test_a_head_without_labels_embeds() -> None:
    assert o.head((), {}).task is smile.Task.EMBEDDING
    assert o.head(("a", "b"), {}).task is smile.Task.SEQUENCE_CLASSIFICATION
    assert o.head(("a", "b"), {"pooling": "cls"}).pooling is smile.Pooling.CLS
    known = "pooling must be one of mean, cls, pooler, got 'max'"
    with pytest.raises(smile.InvalidSpec, match=known):
        o.head((), {"pooling": "max"})


@given(st.integers(1, 50), st.floats(0, 100))
def test_waits_are_bounded_and_never_shorter_than_asked(failures: int, asked: float) -> None:
    backoff = Backoff(first_s=0.1, wait_s_max=5.0)
    wait = backoff.wait_s(failures, smile.Overloaded("full", retry_after=asked))
    assert asked <= wait <= max(asked, 5.0)
    assert backoff.wait_s(1, smile.Unavailable("away")) <= 0.1


def test_texts_are_checked_before_they_are_sent() -> None:
    assert checked(("a", "b")) == ["a", "b"]
    assert len(checked(["x"] * 10_000)) == 10_000
    with pytest.raises(smile.TooManyTexts) as raised:
        checked(["x"] * 10_001)
    assert raised.value.metadata == {"limit": "10000", "value": "10001"}


def test_a_failed_job_tells_why() -> None:
    job = smile.TrainingJob("tenants/a/trainingJobs/j", "v", "d", state=smile.JobState.FAILED)
    cancelled = smile.TrainingJob("t/j", "v", "d", state=smile.JobState.CANCELLED)
    assert str(JobFailed(cancelled)) == "t/j was cancelled"
    assert JobFailed(cancelled).reason == "JOB_CANCELLED"
    error = smile.JobError("OUT_OF_ROWS", "3 rows are too few")
    failed = JobFailed(
        smile.TrainingJob("tenants/a/trainingJobs/j", "v", "d", state=job.state, error=error)
    )
    assert (failed.reason, failed.report) == ("OUT_OF_ROWS", None)
    assert str(failed) == "tenants/a/trainingJobs/j failed: 3 rows are too few"


def test_the_sync_face_is_what_the_generator_writes() -> None:
    tool = [sys.executable, str(ROOT / "tools" / "sync_client.py"), "check"]
    subprocess.run(tool, check=True)


def test_a_watch_is_patient_for_a_minute_and_with_long_streams() -> None:
    clock = FakeClock()
    patience = _Patience(clock)
    away = smile.Unavailable("away")
    for _ in range(10):  # quiet streams that live long are no failures
        patience.stream_begins()
        clock.advance(3600)
        assert patience.wait_s(smile.DeadlineExceeded("quiet")) <= 0.2
    waits = []
    while clock.now < 1_000 + 36_000 + 59:
        patience.stream_begins()
        waits.append(patience.wait_s(away))
        clock.advance(waits[-1])
    assert max(waits) <= 3.0
    clock.advance(5)
    patience.stream_begins()
    with pytest.raises(smile.Unavailable):
        patience.wait_s(away)
    patience.answered()
    assert patience.wait_s(away) <= 0.2


def test_a_whole_model_has_a_rate_of_its_own_and_no_alias() -> None:
    whole = o.job("v", "d", "", {"method": "full"})
    assert (whole.method, whole.promote_alias) == (smile.Method.FULL, "")
    assert whole.hyper_parameters.learning_rate == 5e-5
    assert o.job("v", "d", "", {"method": "full", "learning_rate": 1e-4}).hyper_parameters == (
        o.hyper_parameters({"learning_rate": 1e-4})
    )
    assert o.trial({"method": "full"}, {"epochs": 2}).learning_rate == 5e-5
    assert o.job("v", "d", "", {}).hyper_parameters.learning_rate == 2e-3
    message = codec.job_to_pb(whole)
    assert codec.job_from_pb(message) == whole
    message.promote_alias, message.hyper_parameters.learning_rate = "", 0.0  # as others may send it
    assert codec.job_from_pb(message) == whole
    with pytest.raises(InvalidSpec, match="method must be one of pet, full, got 'half'"):
        o.job("v", "d", "", {"method": "half"})
