# SPDX-License-Identifier: Apache-2.0
"""The evaluator and a real Envoy decide random requests under random policies alike."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest

from tests.envoy.security.random_policies import random_policies, random_request
from tests.envoy.security.rig import Rig, request_authentication
from tests.envoy.security.tokens import Issuer
from ztunnel.l7.security.evaluate import Decision
from ztunnel.l7.security.request import Connection, HttpRequest
from ztunnel.l7.security.simulate import simulate
from ztunnel.mesh.model import SocketAddress

SERVICES = 100
REQUESTS = 20  # per service
ISSUER = Issuer("issuer")


class Case(NamedTuple):
    """A request, what is predicted, and Envoy's status."""

    service: str
    request: dict[str, Any]
    decision: Decision
    status: int

    def __str__(self) -> str:
        return f"{self.service}: {self.request}: predicted {self.decision}, got {self.status}"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_evaluator_predicts_the_decisions_of_envoy(seed: int, tmp_path: Path) -> None:
    random = Random(seed)
    rig = Rig()
    for number in range(SERVICES):
        name = f"s{number}"
        policies = random_policies(random, name)
        if random.random() < 0.7:
            trust = {"issuer": ISSUER.name, "jwks": ISSUER.jwks}
            policies.append(request_authentication(f"{name}-jwt", trust))
        rig.add(name, policies)
    with rig.run(tmp_path, decide_only=True):
        cases = [
            _case(rig, f"s{number}", random_request(random), f"{number}.{each}")
            for number in range(SERVICES)
            for each in range(REQUESTS)
        ]
    wrong = [case for case in cases if (case.decision.status or 200) != case.status]
    assert not wrong, "\n".join(map(str, wrong[:10]))
    _check_rules(cases, rig.access_log)
    allowed = sum(case.decision.allowed for case in cases)
    assert 0.2 < allowed / len(cases) < 0.8  # the requests exercise both


def _case(rig: Rig, service: str, request: dict[str, Any], name: str) -> Case:
    headers = [("x-request-id", name), *request["headers"]]
    if request["claims"] is not None:
        headers.append(ISSUER.bearer(**request["claims"]))
    reply = rig.call(
        service,
        request["method"],
        request["path"],
        [("host", request["host"]), *headers],
        identity=request["identity"],
        source=(request["address"], 40000),
    )
    ip, port = rig.services[service]
    claims = request["claims"]
    decision = simulate(
        rig.world.inputs,
        rig.destination(service),
        Connection(
            identity=request["identity"],
            source_ip=request["address"],
            destination=SocketAddress(ip, port),
        ),
        HttpRequest(
            method=request["method"],
            authority=request["host"],
            path=request["path"],
            headers=tuple(headers),
        ),
        None if claims is None else {"iss": ISSUER.name, "sub": "alice", **claims},
    )
    return Case(service, {**request, "id": name}, decision, reply.status)


def _check_rules(cases: list[Case], log: dict[str, str]) -> None:
    """Envoy's access log names the rule that the evaluator names."""
    denied = [case for case in cases if case.status == 403 and case.decision.status == 403]
    assert denied
    for case in denied:
        assert log[case.request["id"]] == case.decision.response_details, case
