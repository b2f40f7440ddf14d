# SPDX-License-Identifier: Apache-2.0
"""Retry policies."""

from __future__ import annotations

from collections.abc import Sequence

from ztunnel.l7.config import Json

# Istio's defaults (istio/istio, pilot/pkg/networking/core/route/retry).
_RETRY_ON = "connect-failure,refused-stream,unavailable,cancelled,reset-before-request"
_ATTEMPTS = 2
_MAX_BACKOFF_FACTOR = 10  # Envoy's default of max_interval, as a multiple of base_interval

# A retry selects another endpoint than the one that failed.
DEFAULT_RETRY: Json = {
    "retry_on": _RETRY_ON,
    "num_retries": _ATTEMPTS,
    "retry_host_predicate": [
        {
            "name": "envoy.retry_host_predicates.previous_hosts",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3"
                ".PreviousHostsPredicate"
            },
        }
    ],
    "host_selection_retry_max_attempts": "5",
}


def retry_policy(*, codes: Sequence[int], attempts: int | None, backoff_s: float | None) -> Json:
    """Return the policy of a route's `retry`. None: the default.

    Gateway API requires retries after connection errors and timeouts of a backend, which is
    `reset`. Envoy waits up to the backoff before the first retry, and longer before later ones.
    """
    conditions = [_RETRY_ON, "reset", *(["retriable-status-codes"] if codes else [])]
    policy = {
        **DEFAULT_RETRY,
        "retry_on": ",".join(conditions),
        "num_retries": _ATTEMPTS if attempts is None else attempts,
    }
    if codes:
        policy["retriable_status_codes"] = list(codes)
    if backoff_s:
        policy["retry_back_off"] = {
            "base_interval": duration(backoff_s),
            "max_interval": duration(backoff_s * _MAX_BACKOFF_FACTOR),
        }
    return policy


def duration(seconds: float) -> str:
    """Return a duration in the JSON form of protobuf, in milliseconds."""
    return f"{seconds:.3f}s"
