# SPDX-License-Identifier: Apache-2.0
"""The kernel's open ports follow the listeners of this node's ingress gateways."""

from __future__ import annotations

from typing import Any

import msgspec

from tests.support.agent_fakes import FakeGatewayPorts, workload
from ztunnel.agent.traffic.gateway_ports import UDP_PORTS, GatewayPorts
from ztunnel.datapath.gateway_port_map import OpenPort
from ztunnel.kube.view.cluster_view import ViewChange
from ztunnel.mesh.model import GatewayPort, Workload

HTTPS = GatewayPort(443), GatewayPort(443, "UDP")
ADDRESSES = ("10.244.1.3", "fd00::3")
KEYS = ((443, "TCP"), (443, "UDP"), (UDP_PORTS, "UDP"))
OPEN = {OpenPort(ip, port, protocol) for ip in ADDRESSES for port, protocol in KEYS}


def edge(*ports: GatewayPort, **fields: Any) -> Workload:
    made = workload("edge", pod_uid="u", addresses=ADDRESSES)
    return msgspec.structs.replace(made, **{"gateway_ports": ports, "enrolled": True, **fields})


def publish(consumer: GatewayPorts, *pods: Workload) -> None:
    change = ViewChange(local_pods=pods)
    consumer.before(change)
    consumer.apply(change)


def test_ports_of_enrolled_gateway_pods_are_open_at_every_address() -> None:
    kernel = FakeGatewayPorts()
    publish(GatewayPorts(kernel), edge(*HTTPS), workload("other", pod_uid="o"))
    assert kernel.entries == OPEN


def test_pods_that_are_not_enrolled_open_nothing() -> None:
    kernel = FakeGatewayPorts()
    publish(GatewayPorts(kernel), edge(*HTTPS, enrolled=False))
    assert not kernel.entries


def test_withdrawn_ports_are_closed_before_the_change_is_applied() -> None:
    kernel = FakeGatewayPorts()
    ports = GatewayPorts(kernel)
    publish(ports, edge(*HTTPS))
    ports.before(ViewChange(local_pods=(edge(GatewayPort(80)),)))
    assert not kernel.entries
    ports.apply(ViewChange(local_pods=(edge(GatewayPort(80)),)))
    assert kernel.entries == {OpenPort(ip, 80, "TCP") for ip in ADDRESSES}


def test_address_of_a_former_gateway_pod_is_closed_before_its_next_pod_is_captured() -> None:
    kernel = FakeGatewayPorts()
    ports = GatewayPorts(kernel)
    publish(ports, edge(*HTTPS))
    ports.before(ViewChange(local_pods=(edge(gateway_ports=()),)))
    assert not kernel.entries


def test_entries_of_an_earlier_agent_stay_until_the_state_is_known_and_then_follow_it() -> None:
    stale = OpenPort("10.244.1.9", 80, "TCP")
    kernel = FakeGatewayPorts(*OPEN, stale)
    ports = GatewayPorts(kernel)
    ports.reconcile()
    assert kernel.entries == OPEN | {stale}
    publish(ports, edge(*HTTPS))
    assert kernel.entries == OPEN


def test_a_port_that_the_kernel_has_no_room_for_is_opened_later() -> None:
    kernel = FakeGatewayPorts()
    kernel.room = 3
    ports = GatewayPorts(kernel)
    publish(ports, edge(*HTTPS))
    assert len(kernel.entries) == 3
    kernel.room = len(OPEN)
    ports.reconcile()
    assert kernel.entries == OPEN
