# SPDX-License-Identifier: Apache-2.0
"""Decides whether a connection is written to the access log.

    rule of the pod's namespace, else the general rule --> level, sampling of successes

Failed and refused connections are never sampled.
"""

from __future__ import annotations

import random

from ztunnel.ipc.messages import LogConfig, LogLevel

_ALL = frozenset({LogLevel.DEBUG, LogLevel.INFO})
_FAILURES = _ALL | {LogLevel.WARNING}


def is_wanted(settings: LogConfig, namespace: str, *, failed: bool) -> bool:
    """Whether to write the line. Samples successful connections at random."""
    rule = settings.access
    if settings.namespaces:
        rule = settings.namespaces.get(namespace, rule)
    if failed:
        return rule.level in _FAILURES
    return rule.level in _ALL and (rule.sample >= 1 or random.random() < rule.sample)
