# SPDX-License-Identifier: Apache-2.0
"""The cost of a policy decision with 10,000 policies, and of a change of one policy.

    .venv/bin/python bench/policy.py

Prints a line per kind of policy; exits with 1 if the median decision takes more than 100 µs. Needs
no root and no network.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from ztunnel.kube.objects.policies import read_authorization_policy
from ztunnel.mesh.model import SocketAddress, Workload
from ztunnel.mesh.policy.engine import PolicyEngine
from ztunnel.mesh.policy.match_terms import AuthzRequest

COUNT = 10_000
LIMIT_S = 100e-6  # seconds for a decision
ROUNDS = 2_000
Json = dict[str, Any]

WORKLOAD = Workload(
    uid="c//Pod/shop/web",
    pod_uid="web",
    name="web",
    namespace="shop",
    service_account="web",
    node="n",
    addresses=("10.244.1.7",),
    labels={"app": "web", "tier": "front", "team": "a"},
)


def by_principal(n: int) -> Json:
    return {"from": [{"source": {"principals": [f"cluster.local/ns/n{n}/sa/client"]}}]}


def by_prefix(n: int) -> Json:
    return {"from": [{"source": {"principals": [f"cluster.local/ns/n{n}/*"]}}]}


def by_network(n: int) -> Json:
    return {"from": [{"source": {"ipBlocks": [f"10.{n >> 8}.{n & 255}.0/24"]}}]}


def by_namespace_and_port(n: int) -> Json:
    return {
        "from": [{"source": {"namespaces": [f"n{n}"]}}],
        "to": [{"operation": {"ports": ["80"]}}],
    }


def all_but(n: int) -> Json:
    return {"from": [{"source": {"notNamespaces": ["front"], "ipBlocks": [f"10.1.{n & 255}.1"]}}]}


def policy(n: int, rule: Json, action: str, namespace: str, selector: Json | None) -> Json:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": f"p{n}", "namespace": namespace},
        "spec": {"action": action, "rules": [rule]}
        | ({"selector": {"matchLabels": selector}} if selector else {}),
    }


def _unselective(rule: Callable[[int], Json], action: str, namespace: str, n: int) -> Json:
    return policy(n, rule(n), action, namespace, None)


def scenarios() -> Iterator[tuple[str, Callable[[int], Json]]]:
    """Ten thousand policies each; half of the connections match one, half match none."""
    for rule in (by_principal, by_prefix, by_network, by_namespace_and_port, all_but):
        name = rule.__name__.replace("_", " ")
        yield (
            f"ALLOW {name}, the namespace",
            partial(_unselective, rule, "ALLOW", "shop"),
        )
        yield (
            f"DENY {name}, the mesh",
            partial(_unselective, rule, "DENY", "istio-system"),
        )
    yield (
        "ALLOW by principal, each a selector of its own",
        lambda n: policy(n, by_principal(n), "ALLOW", "shop", {"app": f"a{n}"}),
    )
    yield (
        "ALLOW by principal, one selector",
        lambda n: policy(n, by_principal(n), "ALLOW", "shop", {"app": "web"}),
    )


def questions() -> list[AuthzRequest]:
    here = SocketAddress("10.244.1.7", 80)
    return [
        AuthzRequest("10.3.4.5", f"spiffe://cluster.local/ns/{name}/sa/client", here)
        for name in ("n77", "n9999", "front", "nowhere")
    ]


def measure(make: Callable[[int], Json]) -> tuple[float, float, float]:
    """Seconds: a decision (median), the first decision for a workload, a change of one policy."""
    values = [read_authorization_policy(make(n), "istio-system").policy for n in range(COUNT)]
    policies = PolicyEngine()
    for value in values:
        policies.put(value)
    asked = questions()
    start = time.perf_counter()
    policies.decide(WORKLOAD, asked[0])
    first = time.perf_counter() - start
    times = []
    for number in range(ROUNDS):
        question = asked[number % len(asked)]
        start = time.perf_counter()
        policies.decide(WORKLOAD, question)
        times.append(time.perf_counter() - start)
    changes = []
    for value in values[:200]:
        start = time.perf_counter()
        policies.put(value)
        changes.append(time.perf_counter() - start)
    return statistics.median(times), first, statistics.median(changes)


def main() -> int:
    print(f"{COUNT:,} policies; µs")
    print(f"{'':52}{'decision':>10}{'first':>10}{'change':>10}")
    worst = 0.0
    for name, make in scenarios():
        decision, first, change = measure(make)
        worst = max(worst, decision)
        print(f"{name:52}{decision * 1e6:10.1f}{first * 1e6:10.1f}{change * 1e6:10.1f}")
    print(f"slowest {worst * 1e6:.1f} µs, wanted at most {LIMIT_S * 1e6:.0f} µs")
    return int(worst > LIMIT_S)


if __name__ == "__main__":
    sys.exit(main())
