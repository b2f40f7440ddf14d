# SPDX-License-Identifier: Apache-2.0
"""The CRDs of the Gateway API and of Istio, on a test's API server."""

from __future__ import annotations

import subprocess

from tests.support.apiserver.server import ROOT, ApiServer


def install_crds(server: ApiServer) -> None:
    """Apply the CRDs and wait until the API server serves them."""
    done = subprocess.run(
        [ROOT / "scripts/gateway-crds"], stdout=subprocess.PIPE, text=True, check=True
    )
    server.kubectl("apply", "--server-side", "-f", "-", stdin=done.stdout)
    server.kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")
