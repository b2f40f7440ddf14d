# SPDX-License-Identifier: Apache-2.0
"""The rate of certificate issuance through a real API server and a real `ztunnel controller`.

    python bench/signing.py [--accounts 1000] [--nodes 20] [--at-once 16]

One request per service account, as agents make them, each backed by a pod on the node of the
requesting agent. Keys and CSRs are made before the clock starts, since agents make them on their
own nodes. Controller, API server, etcd and all clients share the machine. Needs no root.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.cluster.population import Writers, log
from bench.scale import quantiles
from tests.support.apiserver.control_plane import ControlPlane, wait_until
from tests.support.apiserver.server import ApiServer
from ztunnel.identity.csr import CertificateRequest, new_request
from ztunnel.kube.writers.csr_client import CsrSigner

SPACE = "accounts"


def populate(mesh: ControlPlane, args: argparse.Namespace) -> None:
    """A pod for each account, spread over the nodes."""
    mesh.namespace(SPACE)
    writers = Writers(mesh.server)
    for number in range(args.accounts):
        body = {
            "metadata": {"name": f"pod-{number}"},
            "spec": {
                "nodeName": f"node-{number % args.nodes}",
                "serviceAccountName": f"account-{number}",
                "containers": [{"name": "app", "image": "app"}],
            },
        }
        account = {"metadata": {"name": f"account-{number}"}}
        writers.put("POST", f"/api/v1/namespaces/{SPACE}/serviceaccounts", account)
        writers.put("POST", f"/api/v1/namespaces/{SPACE}/pods", body)
    writers.wait("accounts and pods", 2 * args.accounts)
    for number in range(args.accounts):
        path = f"/api/v1/namespaces/{SPACE}/pods/pod-{number}/status"
        writers.put("PATCH", path, {"status": {"phase": "Running"}})
    writers.wait("pods' phases", 3 * args.accounts)
    writers.close()


async def ask(
    signers: list[CsrSigner], requests: list[CertificateRequest], at_once: int
) -> list[float]:
    """Request every certificate; return the seconds of each request."""
    turns = asyncio.Semaphore(at_once)

    async def one(number: int, request: CertificateRequest) -> float:
        async with turns:
            began = time.monotonic()
            await signers[number % len(signers)].sign(request.identity, request.csr_pem)
            return time.monotonic() - began

    return await asyncio.gather(*(one(*each) for each in enumerate(requests)))


def measure(args: argparse.Namespace, directory: Path) -> dict[str, Any]:
    with ApiServer(directory) as server:
        mesh = ControlPlane(server)
        populate(mesh, args)
        agents = [server.client(mesh.agent(f"node-{number}")) for number in range(args.nodes)]
        requests = [
            new_request(f"spiffe://cluster.local/ns/{SPACE}/sa/account-{number}")
            for number in range(args.accounts)
        ]
        with mesh.controller("bench") as process:
            roots = wait_until(mesh.roots, "roots are published")
            log("signing: begins")
            signers = [CsrSigner(api, lambda: roots, timedelta(hours=1)) for api in agents]
            load, before, began = os.getloadavg()[0], cpu(process.pid), time.monotonic()
            took = asyncio.run(ask(signers, requests, args.at_once))
            total = time.monotonic() - began
            used = cpu(process.pid) - before
        return {
            "accounts": args.accounts,
            "at_once": args.at_once,
            "load_average_before": load,
            "seconds": round(total, 1),
            "certificates_per_second": round(args.accounts / total, 1),
            "ms": quantiles(took),
            "signer_cpu_ms_each": round(1000 * used / args.accounts, 1),
        }


def cpu(pid: int) -> float:
    """CPU seconds so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (("accounts", 1000), ("nodes", 20), ("at-once", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="zt-signing-") as directory:
        print(json.dumps(measure(args, Path(directory)), indent=2))


if __name__ == "__main__":
    main()
