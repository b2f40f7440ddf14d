# SPDX-License-Identifier: Apache-2.0
"""Keeps the agent's policy engine up to date with the cluster view."""

from __future__ import annotations

from ztunnel.kube.view.cluster_view import ViewChange
from ztunnel.kube.view.publisher import ViewConsumer
from ztunnel.mesh.policy.engine import PolicyEngine


class PolicyUpdate(ViewConsumer):
    """Applies changes of policies to the engine that the agent's decisions use."""

    def __init__(self, policies: PolicyEngine) -> None:
        self._policies = policies

    def apply(self, change: ViewChange) -> None:
        if change:
            self._policies.apply(change)
