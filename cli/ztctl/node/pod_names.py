# SPDX-License-Identifier: Apache-2.0
"""Names of the pods that the BPF maps know by address only. Best effort.

The names come from the agent. In a lab whose agent is down, they come from the lab's objects.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from ztctl import admin_client
from ztctl.errors import CommandError
from ztctl.targets import Target
from ztunnel.datapath.bpf.maps import PodEntry

_TIMEOUT_S = 1.0  # the commands work without names


class PodNames:
    """The names of one node's pods, by address."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def of(self, pod: PodEntry) -> str:
        """`namespace/name`; if the name is unknown, the pod's first address or its netns cookie."""
        for address in pod.addresses:
            if address in self._by_address:
                return self._by_address[address]
        return pod.addresses[0] if pod.addresses else str(pod.netns_cookie)

    @cached_property
    def _by_address(self) -> dict[str, str]:
        try:
            response = admin_client.get(self._target.run_dir, "/v1/workloads", _TIMEOUT_S)
        except CommandError:
            return _from_lab(self._target.lab)
        return {
            address: f"{workload['namespace']}/{workload['name']}"
            for workload in response["workloads"]
            for address in workload["addresses"]
        }


def _from_lab(lab: str) -> dict[str, str]:
    if not lab:
        return {}
    from ztunnel.lab import Lab, LabError  # noqa: PLC0415  only in a lab whose agent is down

    try:
        pods: list[Any] = Lab(lab).pods()
    except LabError:  # the lab was removed in the meantime
        return {}
    return {
        address["ip"]: f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
        for pod in pods
        for address in pod.get("status", {}).get("podIPs", [])
    }
