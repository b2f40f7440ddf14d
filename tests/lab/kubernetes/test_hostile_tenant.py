# SPDX-License-Identifier: Apache-2.0
"""A short run of the soak: a hostile tenant cannot stop another tenant, and cannot reach it.

`python bench/hostile.py` runs it for 20 minutes and also compares latencies.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.lab.hostile.soak import MEBIBYTE, Soak, install_crds
from tests.lab.kubernetes.api_lab import ApiLab
from tests.support.apiserver.server import ApiServer

pytestmark = pytest.mark.kubernetes

ALONE_S, ATTACKED_S = 2.0, 25.0
RATE = 50  # requests per second; the machine also runs the attackers and an API server
MAX_BYTES = {"agent": 256 * MEBIBYTE, "proxy": 384 * MEBIBYTE}


@pytest.mark.usefixtures("_root")
def test_hostile_tenant_neither_stops_nor_reaches_another_tenant(tmp_path: Path) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(ApiServer(tmp_path))
        install_crds(server)
        api = stack.enter_context(ApiLab(f"t{os.getpid() % 100000}", server))
        result = Soak(api, seed=os.getpid(), rate=RATE).run(ALONE_S, ATTACKED_S)
    assert result.attacked.failures == [], result.attacks
    assert result.attacked.requests > RATE * ATTACKED_S * 0.9
    assert result.answered == 0
    assert len(result.attacks) > 10, result.attacks
    for name, peak in result.peak_bytes.items():
        assert peak < MAX_BYTES[name.split()[0]], result.peak_bytes
