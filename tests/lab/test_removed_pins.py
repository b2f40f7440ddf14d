# SPDX-License-Identifier: Apache-2.0
"""A cleaner of the node removes the pins, while the agent runs or while it does not."""

from __future__ import annotations

import shutil
from typing import Any

from tests.lab.helpers.harness import addresses, client
from tests.support.waiting import wait_until
from ztunnel.datapath.bpf.maps import Maps
from ztunnel.lab import Lab, admin_get

NODE = "node1"


def _status(lab: Lab) -> dict[str, Any]:
    _, answer = admin_get(lab.names, NODE, "/v1/status")
    return answer or {}


def _redirected(lab: Lab) -> int:
    """The connections that the kernel redirected or let bypass the proxy, of all pods."""
    maps = Maps(lab.names.pin_dir(NODE), read_only=True)
    try:
        return sum(each.redirected + each.same_node_bypass for each in maps.pod_stats().values())
    finally:
        maps.close()


def _echoes(lab: Lab) -> bool:
    """Whether same-node traffic is captured and arrives, in both address families."""
    before = _redirected(lab)
    for target in addresses(lab, "near").values():
        if client(lab, "client", "echo", target, 7000, "hi") != {"said": "hi"}:
            return False
    return _redirected(lab) >= before + 2


def test_removed_pins_are_restored_while_traffic_stays_captured(lab: Lab) -> None:
    assert _echoes(lab)
    restored = _status(lab)["data_path"]["pins"]["restored"]
    shutil.rmtree(lab.names.pin_dir(NODE))
    wait_until(lambda: _status(lab)["data_path"]["pins"]["restored"] > restored, "the pins")
    assert _status(lab)["ready"]
    assert _echoes(lab)
    lab.restart(NODE, "agent", kill=True)
    wait_until(lambda: _status(lab).get("ready"), "the agent")
    assert _status(lab)["data_path"]["loaded"] == "adopted"
    assert _echoes(lab)


def test_workers_start_pods_anew_if_pins_were_removed_without_agent(lab: Lab) -> None:
    """The sockets that workers hold have no tags in the new maps: the programs would redirect
    the proxy's own connections to the proxy."""
    lab.kill(NODE, "agent")
    shutil.rmtree(lab.names.pin_dir(NODE))
    lab.start(NODE, "agent")
    assert _status(lab)["data_path"]["loaded"] == "loaded"

    def is_recovered() -> bool:
        _, answer = admin_get(lab.names, NODE, "/v1/pods")
        rows = (answer or {}).get("pods", [])
        return bool(rows) and all(row["state"] == "captured" and not row["problem"] for row in rows)

    wait_until(is_recovered, "the pods to be captured without a restart of the proxy")
    for _ in range(20):
        assert _echoes(lab)
