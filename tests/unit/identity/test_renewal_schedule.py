# SPDX-License-Identifier: Apache-2.0
"""The renewal schedule under random sequences of success and failure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.identity.renewal_schedule import (
    FIRST_RETRY_S,
    JITTER_FRACTION,
    MAX_RETRY_S,
    Phase,
    RenewalSchedule,
)

JITTER = st.floats(-1, 1)
NOW = st.floats(0, 4e9)


def test_new_schedule_is_due_immediately() -> None:
    rotation = RenewalSchedule(attempt_at=100.0)
    assert rotation.phase(100.0) is Phase.PENDING
    assert rotation.due_in(100.0) == 0


def test_certificate_is_renewed_at_half_life_and_serves_meanwhile() -> None:
    rotation = RenewalSchedule(attempt_at=0).issued(0, not_after=1000, jitter=0)
    assert rotation.phase(499) is Phase.VALID
    assert rotation.phase(500) is Phase.DUE
    assert rotation.has_valid(999)


def test_failed_renewal_keeps_the_old_certificate_until_it_expires() -> None:
    rotation = RenewalSchedule(attempt_at=0).issued(0, not_after=1000, jitter=0).failed(500, 0)
    assert rotation.phase(500) is Phase.BACKOFF
    assert rotation.has_valid(999)
    assert not rotation.has_valid(1000)
    assert rotation.phase(1000) is Phase.PENDING


def test_success_resets_backoff() -> None:
    rotation = RenewalSchedule(attempt_at=0)
    for _ in range(5):
        rotation = rotation.failed(0, 0)
    assert rotation.issued(10, 1000, 0).failures == 0


def test_expired_certificate_is_due_after_a_jump_of_the_clock() -> None:
    rotation = RenewalSchedule(attempt_at=0).issued(1000, not_after=2000, jitter=0)
    assert rotation.due_in(1e6) == 0


@given(NOW, st.floats(1, 1e6), JITTER)
def test_renewal_falls_near_half_life(now: float, lifetime: float, jitter: float) -> None:
    rotation = RenewalSchedule(attempt_at=now).issued(now, now + lifetime, jitter)
    assert rotation.due_in(now) == pytest.approx(
        lifetime / 2, abs=lifetime * JITTER_FRACTION + 1e-3
    )


@given(NOW, st.lists(JITTER, min_size=1, max_size=40))
def test_delays_grow_but_stay_bounded(now: float, jitters: list[float]) -> None:
    rotation = RenewalSchedule(attempt_at=now)
    for jitter in jitters:
        rotation = rotation.failed(now, jitter)
        delay = rotation.due_in(now)
        assert (
            FIRST_RETRY_S * (1 - JITTER_FRACTION) - 1e-3
            <= delay
            <= MAX_RETRY_S * (1 + JITTER_FRACTION) + 1e-3
        )
        now += delay


@given(
    lifetime=st.floats(10, 1e5),
    steps=st.lists(st.tuples(st.booleans(), JITTER), max_size=60),
)
def test_next_attempt_is_always_before_expiry(
    lifetime: float, steps: list[tuple[bool, float]]
) -> None:
    now = 1000.0
    rotation = RenewalSchedule(attempt_at=now).issued(now, now + lifetime, 0)
    for succeeds, jitter in steps:
        before = rotation
        now += rotation.due_in(now)
        assert rotation.phase(now) in (Phase.DUE, Phase.PENDING)
        if succeeds:
            rotation = rotation.issued(now, now + lifetime, jitter)
            assert rotation.has_valid(now)
        else:
            rotation = rotation.failed(now, jitter)
            assert rotation.not_after == before.not_after  # the valid certificate stays in use
            if rotation.has_valid(now) and rotation.not_after - now > 2 * FIRST_RETRY_S:
                assert rotation.attempt_at < rotation.not_after
