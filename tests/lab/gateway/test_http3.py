# SPDX-License-Identifier: Apache-2.0
"""HTTP/3 from outside the cluster, through the load balancer, into ambient pods."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.lab.gateway import storefront as front
from tests.lab.gateway.storefront import HOST, HTTPS, Storefront
from tests.support.waiting import wait_until
from ztunnel.lab.network.addresses import EXTERNAL_ADDRESSES

ROOT = Path(__file__).parents[3]
_GET = """
import json, sys
sys.path.insert(0, sys.argv[1])
from tests.support.ingress.http3_client import fetch_http3
headers, body = fetch_http3(int(sys.argv[3]), sys.argv[4], address=sys.argv[2])
print(json.dumps([headers[":status"], json.loads(body)]))
"""


def get(storefront: Storefront) -> tuple[str, dict[str, Any]]:
    """Status and body of a request; an empty status if there is no response."""
    options = (str(ROOT), storefront.address(), str(HTTPS), HOST)
    done = storefront.lab.external_exec(sys.executable, "-c", _GET, *options)
    if done.returncode != 0:
        return "", {}
    status, body = json.loads(done.stdout)
    return status, body


def gateway(*, enabled: bool) -> list[dict[str, Any]]:
    """The Gateway and its parameters."""
    objects = front.gateway()
    for each in objects:
        if each["kind"] == "Gateway":
            each["metadata"]["annotations"] = {"ztunnel.dev/http3": str(enabled).lower()}
    return objects


def test_http3_reaches_the_app_while_the_gateway_enables_it(storefront: Storefront) -> None:
    assert get(storefront)[0] == ""
    try:
        assert storefront.lab.apply(*gateway(enabled=True)) == []
        wait_until(lambda: get(storefront)[0] == "200", "HTTP/3", timeout_s=30)
        _, body = get(storefront)
        assert body["headers"]["x-forwarded-for"] == EXTERNAL_ADDRESSES[0]
        answer = storefront.get(f"https://{HOST}/", "-D", "-")
        assert "alt-svc: h3=" in answer.text
    finally:
        storefront.lab.apply(*gateway(enabled=False))
    wait_until(lambda: get(storefront)[0] == "", "the end of HTTP/3", timeout_s=30)
