# SPDX-License-Identifier: Apache-2.0
"""Requests in a lab with a waypoint, single ones and a load at a fixed rate."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.lab.helpers.harness import APPS
from tests.lab.helpers.scrape import Page
from tests.lab.waypoint.shop import SHOP, WAYPOINT
from ztunnel.lab import Lab

RATE = 200  # requests per second


@dataclass(frozen=True)
class Response:
    """A response of my-app; `body` is empty if the response is not from it."""

    status: int
    body: dict[str, Any]
    text: str = ""

    @property
    def version(self) -> str:
        """The version of the app that answered."""
        return str(self.body.get("version", ""))


@dataclass(frozen=True)
class Request:
    """A request of a load: times in seconds since the epoch; status 0 for a failure."""

    began: float
    ended: float
    status: int
    version: str


@dataclass
class Result:
    """What happened to a load. Filled at the end of the `with` block."""

    requests: list[Request] = field(default_factory=list)
    retried: int = 0
    drained: int = 0

    @property
    def failed(self) -> list[Request]:
        """Requests without a response, or with another status than 200."""
        return [request for request in self.requests if request.status != 200]

    def outage_s(self) -> float:
        """From the start of the first failed request to the end of the last one."""
        failed = self.failed
        return max(r.ended for r in failed) - min(r.began for r in failed) if failed else 0.0

    def slowest_s(self) -> float:
        """The duration of the slowest request that succeeded."""
        return max((r.ended - r.began for r in self.requests if r.status == 200), default=0.0)

    def versions(self, after: float, before: float = float("inf")) -> set[str]:
        """The versions that answered requests that began in this time."""
        return {r.version for r in self.requests if after <= r.began < before and r.status == 200}


@contextmanager
def running_load(running: subprocess.Popen[bytes]) -> Iterator[Result]:
    """The result of http_load.py, which runs during the block."""
    result = Result()
    assert running.stdout is not None
    try:
        assert running.stdout.readline() == b"started\n", running.communicate()
        time.sleep(1)  # connections are established before anything changes
        yield result
        time.sleep(1)
    except BaseException:
        running.kill()
        running.communicate()
        raise
    try:
        output, errors = running.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        running.kill()
        raise
    assert running.returncode == 0, errors
    found = json.loads(output)
    result.requests = [Request(*each) for each in found["requests"]]
    result.retried = found["retried"]
    result.drained = found["drained"]


class Shop:
    """The lab of `shop.py`."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def vip(self, family: int = 4, service: str = "my-app") -> str:
        """The address of a service."""
        ips = self.lab.get("Service", service, SHOP)["spec"]["clusterIPs"]
        return next(str(ip) for ip in ips if (":" in ip) == (family == 6))

    def get(
        self,
        caller: str = "buyer-near",
        path: str = "/",
        *options: str,
        family: int = 4,
        service: str = "my-app",
    ) -> Response:
        """A request with curl from a pod; status 0 if there is no response."""
        ip = self.vip(family, service)
        host = f"[{ip}]" if family == 6 else ip
        done = self.lab.exec(
            caller,
            *("curl", "-sS", "--max-time", "10", "-w", "\n%{http_code}"),
            *("-H", f"Host: {service}", *options, f"http://{host}{path}"),
            namespace=SHOP,
        )
        text, _, status = done.stdout.rpartition("\n")
        try:
            body = json.loads(text)
        except ValueError:
            body = {}
        return Response(int(status or 0), body, text or done.stderr)

    @contextmanager
    def load(
        self, caller: str = "buyer-near", *options: str, rate: int = RATE, family: int = 4
    ) -> Iterator[Result]:
        """Requests at a fixed rate from a pod, during the block."""
        argv = [sys.executable, str(APPS / "http_load.py"), self.vip(family), "80", str(rate)]
        running = self.lab.popen(caller, *argv, *options, namespace=SHOP)
        with running_load(running) as result:
            yield result

    def waypoint_pod(self, name: str = WAYPOINT) -> dict[str, Any]:
        """A ready pod of a waypoint."""
        return self.lab.pod(f"deploy/{name}", SHOP)

    def metrics(self, name: str = WAYPOINT) -> Page:
        """The metrics of a waypoint pod, as Prometheus gets them."""
        pod = self.waypoint_pod(name)
        url = f"http://{pod['status']['podIP']}:15020/metrics"
        node = pod["spec"]["nodeName"]
        done = self.lab.node_exec(node, "curl", "-sSf", "--max-time", "10", url)
        assert done.returncode == 0, done.stderr
        return Page(done.stdout)

    def access_log(self, name: str = WAYPOINT) -> str:
        """The log of a waypoint pod."""
        pod = self.waypoint_pod(name)["metadata"]["name"]
        return self.lab.log_paths(pod, None, SHOP)[0].read_text(errors="replace")
