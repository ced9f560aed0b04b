"""As of when an answer is known to hold."""

from __future__ import annotations

from smile.rpc.freshness import Freshness

DOUBT_S = 10.0
NAME = "tenants/acme/vplms/topics"


def live(since: float = 100.0) -> Freshness:
    made = Freshness(confirm_s=600.0, names_max=5)
    made.opened(since=since, as_of=99.0, doubt_s=DOUBT_S)
    made.beat(150.0)
    return made


def test_without_a_feed_an_answer_is_as_old_as_its_question() -> None:
    assert Freshness().fresh_at(NAME, 5.0, 7.0) == 5.0


def test_an_answer_that_is_covered_is_as_fresh_as_the_last_beat() -> None:
    it = live()
    assert it.fresh_at(NAME, 101.0, 151.0) == 150.0
    it.beat(152.0)
    it.beat(151.0)  # late
    assert it.fresh_at(NAME, 101.0, 153.0) == 152.0


def test_what_was_asked_for_before_the_feed_is_not_covered() -> None:
    assert live().fresh_at(NAME, 99.9, 151.0) == 99.9


def test_after_a_word_answers_are_in_doubt_for_longer_than_a_write_may_take() -> None:
    it = live()
    it.told(NAME, 140.0)
    assert it.outdated(NAME, 139.0)
    assert not it.outdated(NAME, 141.0)
    assert it.fresh_at(NAME, 139.0, 151.0) == 139.0
    assert it.fresh_at(NAME, 149.0, 151.0) == 149.0
    it.beat(160.0)
    assert it.fresh_at(NAME, 150.0, 161.0) == 150.0
    assert it.fresh_at(NAME, 150.1, 161.0) == 160.0
    assert it.fresh_at("tenants/acme/vplms/other", 101.0, 161.0) == 160.0


def test_what_a_lost_feed_said_stays_true_of_then() -> None:
    it = live()
    it.lost()
    assert it.fresh_at(NAME, 101.0, 155.0) == 150.0
    it.opened(since=170.0, as_of=165.0, doubt_s=DOUBT_S)
    it.beat(175.0)
    assert it.fresh_at(NAME, 101.0, 176.0) == 150.0
    assert it.fresh_at(NAME, 168.0, 176.0) == 168.0
    assert it.fresh_at(NAME, 171.0, 176.0) == 175.0


def test_a_feed_that_is_taken_over_goes_on() -> None:
    it = live(since=140.0)
    it.taken_over(since=120.0, doubt_s=DOUBT_S)
    assert it.fresh_at(NAME, 121.0, 151.0) == 150.0
    it.taken_over(since=130.0, doubt_s=DOUBT_S)
    assert it.fresh_at(NAME, 121.0, 151.0) == 150.0


def test_an_answer_is_not_believed_for_ever() -> None:
    it = live()
    it.beat(1_000.0)
    assert it.fresh_at(NAME, 400.0, 1_000.0) == 1_000.0
    assert it.fresh_at(NAME, 399.0, 1_000.0) == 399.0


def test_too_many_names_begin_a_new_epoch() -> None:
    it = live()
    for number in range(6):
        it.told(f"tenants/acme/vplms/v{number}", 145.0)
    assert it.fresh_at(NAME, 101.0, 151.0) == 101.0
    it.beat(160.0)
    assert it.fresh_at(NAME, 154.0, 161.0) == 154.0
    assert it.fresh_at(NAME, 155.5, 161.0) == 160.0


def test_names_told_long_ago_are_forgotten() -> None:
    it = live()
    it.told(NAME, 101.0)
    it.told("tenants/acme/vplms/other", 101.0 + 600.0 + DOUBT_S + 1.0)
    assert list(it._told) == ["tenants/acme/vplms/other"]
