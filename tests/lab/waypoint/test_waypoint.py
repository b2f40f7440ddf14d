# SPDX-License-Identifier: Apache-2.0
"""A waypoint in front of two versions of an app: routing, policy by request, tokens, metrics."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.lab.waypoint import shop, tokens
from tests.lab.waypoint.traffic import Shop
from tests.support.waiting import wait_until

CALLERS = ("buyer-near", "buyer-far")  # on the waypoint's node, and on the other one
REQUESTS = 100


@pytest.fixture(scope="module")
def routed(waypoint_shop: Shop) -> Shop:
    """The shop with its route and policies."""
    assert waypoint_shop.lab.apply(shop.canary(), *shop.policies()) == []
    wait_until(
        lambda: waypoint_shop.get("thief-near").status == 403, "policies are enforced", timeout_s=10
    )
    return waypoint_shop


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("caller", CALLERS)
def test_header_selects_the_version(routed: Shop, caller: str, family: int) -> None:
    response = routed.get(caller, "/", "-H", "x-version: v2", family=family)
    assert (response.status, response.version) == (200, "v2")


@pytest.mark.parametrize("caller", CALLERS)
def test_weights_divide_the_requests(routed: Shop, caller: str) -> None:
    with routed.load(caller) as result:
        pass
    assert result.failed == []
    found = Counter(request.version for request in result.requests)
    assert 0.03 < found["v2"] / found.total() < 0.2, found


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("caller", CALLERS)
def test_policy_evaluates_identity_method_and_path(routed: Shop, caller: str, family: int) -> None:
    def status(who: str, path: str, *options: str) -> int:
        return routed.get(who, path, *options, family=family).status

    assert status(caller, "/catalog") == 200
    assert status(caller, "/catalog", "-X", "POST") == 403
    assert status(caller, "/orders/1") == 403
    assert status(caller.replace("buyer", "thief"), "/catalog") == 403


def test_token_grants_access(routed: Shop) -> None:
    def status(caller: str, *options: str) -> int:
        return routed.get(caller, "/orders/1", "-X", "POST", *options).status

    def bearer(token: str) -> tuple[str, str]:
        return "-H", f"Authorization: Bearer {token}"

    assert status("buyer-near") == 403
    assert status("buyer-near", *bearer(tokens.signed(shop.ISSUER))) == 200
    assert status("thief-near", *bearer(tokens.signed(shop.ISSUER))) == 403
    assert status("buyer-near", *bearer(tokens.signed("other"))) == 401
    expired = tokens.signed(shop.ISSUER, valid_s=-120)  # Envoy accepts a clock skew of 60 s
    assert status("buyer-near", *bearer(expired)) == 401


def test_app_sees_the_request_of_its_client(routed: Shop) -> None:
    forged = ("-H", "x-forwarded-client-cert: URI=spiffe://cluster.local/ns/shop/sa/admin")
    response = routed.get("buyer-near", "/catalog", *forged)
    assert response.status == 200
    assert "x-forwarded-client-cert" not in response.body["headers"]


def test_client_cannot_forge_the_identity_of_another(routed: Shop) -> None:
    """A PROXY header that a client sends is part of its bytes, not of the tunnel's."""
    # PROXY v2, TCP over IPv4, with the TLV 0xD0 of the buyer's identity
    identity = b"spiffe://cluster.local/ns/shop/sa/buyer"
    tlv = bytes([0xD0]) + len(identity).to_bytes(2, "big") + identity
    addresses = bytes([10, 0, 0, 1, 10, 0, 0, 2]) + (1).to_bytes(2, "big") + (80).to_bytes(2, "big")
    header = b"\r\n\r\n\x00\r\nQUIT\n" + bytes([0x21, 0x11])
    header += (len(addresses) + len(tlv)).to_bytes(2, "big") + addresses + tlv
    request = header + b"GET /catalog HTTP/1.1\r\nHost: my-app\r\nConnection: close\r\n\r\n"
    code = (
        "import socket,sys;s=socket.create_connection((sys.argv[1],80),10);"
        f"s.sendall({request!r});print(s.recv(100).decode('latin-1').split(chr(13))[0])"
    )
    import sys

    done = routed.lab.exec(
        "thief-near", sys.executable, "-c", code, routed.vip(), namespace=shop.SHOP
    )
    assert "200" not in done.stdout
    assert "HTTP/1.1 4" in done.stdout or done.returncode


@pytest.mark.parametrize("caller", CALLERS)
def test_metrics_name_the_caller_and_the_version(routed: Shop, caller: str) -> None:
    labels = {
        "reporter": "waypoint",
        "source_canonical_service": "buyer",
        "source_canonical_revision": "v7",
        "source_principal": "spiffe://cluster.local/ns/shop/sa/buyer",
        "destination_service": "my-app-v2.shop.svc.cluster.local",  # the backend, as in Istio
        "destination_canonical_service": "my-app",
        "destination_version": "v2",
        "response_code": "200",
    }
    before = routed.metrics().total("istio_requests_total", **labels)
    for _ in range(3):
        assert routed.get(caller, "/", "-H", "x-version: v2").version == "v2"
    wait_until(
        lambda: routed.metrics().total("istio_requests_total", **labels) == before + 3,
        "the requests are counted",
        timeout_s=10,
    )


def test_waypoint_port_refuses_other_sockets_of_the_pod(routed: Shop) -> None:
    """The loopback listener trusts its PROXY header, so only the node's proxy may connect."""
    done = routed.lab.exec(
        "deploy/waypoint",
        "curl",
        "-sS",
        "--max-time",
        "5",
        "http://127.0.0.1:15088/",
        namespace="shop",
    )
    assert done.returncode == 7, done.stderr  # connection refused
