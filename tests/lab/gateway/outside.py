# SPDX-License-Identifier: Apache-2.0
"""Requests to the ingress gateway of a lab: from outside the cluster, and from pods."""

from __future__ import annotations

import json
from typing import Any

from tests.lab.gateway.edge import SERVICE
from tests.lab.waypoint.shop import SHOP
from tests.lab.waypoint.traffic import Response
from tests.support.waiting import wait_until
from ztunnel.lab import Lab
from ztunnel.lab.network.addresses import EXTERNAL_ADDRESSES

CLIENT = dict(zip((4, 6), EXTERNAL_ADDRESSES, strict=True))  # outside the cluster


class Edge:
    """The lab of `edge.py`."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def balancer(self, family: int = 4) -> str:
        """The gateway's address of the load balancer."""
        service = self.lab.get("Service", SERVICE, SHOP)
        return _of_family(service["status"]["loadBalancer"]["ingress"], family, "ip")

    def vip(self, family: int = 4, service: str = SERVICE) -> str:
        """The cluster IP of the gateway, or of another service."""
        ips = self.lab.get("Service", service, SHOP)["spec"]["clusterIPs"]
        return next(str(ip) for ip in ips if (":" in ip) == (family == 6))

    def gateway_pod(self) -> dict[str, Any]:
        """A ready pod of the gateway."""
        return self.lab.pod(f"deploy/{SERVICE}", SHOP)

    def pod_ip(self, pod: str = "", family: int = 4) -> str:
        """The address of a pod; by default, the gateway's."""
        found = self.lab.pod(pod, SHOP) if pod else self.gateway_pod()
        return _of_family(found["status"]["podIPs"], family, "ip")

    def outside(self, path: str = "/", *options: str, family: int = 4, port: int = 80) -> Response:
        """A request from outside the cluster to the load balancer; status 0: no response."""
        url = f"http://{_host(self.balancer(family))}:{port}{path}"
        return _response(self.lab.external_exec(*_curl(*options), url).stdout)

    def inside(
        self, caller: str, ip: str, path: str = "/", *options: str, port: int = 80
    ) -> Response:
        """A request from a pod to an address; status 0: no response."""
        url = f"http://{_host(ip)}:{port}{path}"
        return _response(self.lab.exec(caller, *_curl(*options), url, namespace=SHOP).stdout)

    def access_log(self) -> str:
        """The log of the gateway pod."""
        name = self.gateway_pod()["metadata"]["name"]
        return self.lab.log_paths(name, None, SHOP)[0].read_text(errors="replace")

    def wait_until_served(self) -> None:
        """Wait until requests from outside reach the app over both families."""
        for family in (4, 6):
            wait_until(
                lambda family=family: self.outside(family=family).status == 200,  # type: ignore[misc]
                f"the gateway serves IPv{family}",
                timeout_s=30,
            )


def _curl(*options: str) -> tuple[str, ...]:
    return "curl", "-sSg", "--max-time", "5", "-w", "\n%{http_code}", *options


def _host(ip: str) -> str:
    return f"[{ip}]" if ":" in ip else ip


def _of_family(entries: list[dict[str, Any]], family: int, name: str) -> str:
    return next(str(each[name]) for each in entries if (":" in each[name]) == (family == 6))


def _response(output: str) -> Response:
    text, _, status = output.rpartition("\n")
    try:
        body = json.loads(text)
    except ValueError:
        body = {}
    return Response(int(status or 0), body, text)
