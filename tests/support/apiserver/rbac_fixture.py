# SPDX-License-Identifier: Apache-2.0
"""The permissions that deploy/ grants to an agent, and an agent's kubeconfig."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.support.apiserver.objects import account, namespace, node, pod
from tests.support.apiserver.server import ROOT, ApiServer

SYSTEM, AGENT = "ztunnel-system", "ztunnel-agent"


def manifest(name: str) -> list[dict[str, Any]]:
    """The objects of a file in deploy/."""
    return [*yaml.safe_load_all((ROOT / "deploy" / name).read_text())]


def grant(server: ApiServer, *nodes: str) -> None:
    """Apply the agents' account and roles, and an agent pod on each of `nodes`."""
    server.apply(namespace(SYSTEM), account(AGENT, SYSTEM))
    server.apply(*manifest("agent-read.yaml"), *manifest("agent-guard.yaml"))
    for name in nodes:
        server.apply(node(name))
        agent = pod(f"agent-{name}", SYSTEM, "192.0.2.1", on=name, host_network=True)
        agent["spec"]["serviceAccountName"] = AGENT
        server.apply(agent)


def agent_kubeconfig(server: ApiServer, on: str, *, url: str = "") -> Path:
    """Of the agent on a node: its token is bound to its pod, and so to the node."""
    return server.account_kubeconfig(SYSTEM, AGENT, pod=f"agent-{on}", url=url)
