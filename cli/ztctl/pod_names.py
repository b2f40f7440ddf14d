# SPDX-License-Identifier: Apache-2.0
"""Names for what the kernel knows by address only: best effort, never needed.

Asked of the agent; in a lab whose agent is down, of the lab's objects.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from ztctl import admin_client
from ztctl.errors import CommandError
from ztctl.targets import Installation
from ztunnel.datapath.bpf.maps import PodEntry

_PATIENCE = 1.0  # seconds: names are not worth a longer wait


class PodNames:
    """The pods of one node by address."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation

    def of(self, pod: PodEntry) -> str:
        """`namespace/name`, or the first address when nobody knows the name."""
        for address in pod.addresses:
            if address in self._by_address:
                return self._by_address[address]
        return pod.addresses[0] if pod.addresses else str(pod.netns_cookie)

    @cached_property
    def _by_address(self) -> dict[str, str]:
        try:
            answer = admin_client.get(self._installation.run_dir, "/v1/workloads", _PATIENCE)
        except CommandError:
            return _of_lab(self._installation.lab)
        return {
            address: f"{each['namespace']}/{each['name']}"
            for each in answer["workloads"]
            for address in each["addresses"]
        }


def _of_lab(lab: str) -> dict[str, str]:
    if not lab:
        return {}
    from ztunnel.lab import Lab, LabError  # noqa: PLC0415  only in a lab whose agent is down

    try:
        pods: list[Any] = Lab(lab).pods()
    except LabError:  # it went down under our eyes
        return {}
    return {
        each["ip"]: f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
        for pod in pods
        for each in pod.get("status", {}).get("podIPs", [])
    }
