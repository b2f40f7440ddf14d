# SPDX-License-Identifier: Apache-2.0
"""Whether a connection gets its line in the access log.

    rule of the pod's namespace, else the general one --> level, share of the orderly ends

What failed or was refused is never sampled: that is what one looks for.
"""

from __future__ import annotations

import random

from ztunnel.ipc.messages import LogConfig, LogLevel

_ALL = frozenset({LogLevel.DEBUG, LogLevel.INFO})
_FAILURES = _ALL | {LogLevel.WARNING}


def is_wanted(settings: LogConfig, namespace: str, *, failed: bool) -> bool:
    """Decide, by chance where a share is asked for."""
    rule = settings.access
    if settings.namespaces:
        rule = settings.namespaces.get(namespace, rule)
    if failed:
        return rule.level in _FAILURES
    return rule.level in _ALL and (rule.sample >= 1 or random.random() < rule.sample)
