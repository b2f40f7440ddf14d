# SPDX-License-Identifier: Apache-2.0
"""Kubernetes quantities of CPU and memory as numbers."""

from __future__ import annotations

import math
import re

_NUMBER = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)(m|k|[KMGT]i?)?", re.ASCII)
# kubernetes.io, "Resource Management for Pods and Containers"
_FACTORS = {
    "": 1.0,
    "m": 1e-3,
    "k": 1e3,
    "K": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "Ki": 2.0**10,
    "Mi": 2.0**20,
    "Gi": 2.0**30,
    "Ti": 2.0**40,
}


def quantity(value: object) -> float | None:
    """A quantity such as `500m`, `2` or `1Gi`; None if it is not one that this module reads."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    match = _NUMBER.fullmatch(str(value))
    return float(match[1]) * _FACTORS[match[2] or ""] if match else None


def worker_threads(cpu_limit: object) -> int | None:
    """Envoy's worker threads: the CPU limit, rounded up; None without a limit."""
    cpus = quantity(cpu_limit)
    return max(1, min(256, math.ceil(cpus))) if cpus else None
