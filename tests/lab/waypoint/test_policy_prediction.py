# SPDX-License-Identifier: Apache-2.0
"""`ztctl policy test` predicts what a waypoint does, and `ztctl analyze` finds what it ignores."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.lab.waypoint import shop, tokens
from tests.lab.waypoint.traffic import Shop
from tests.support.waiting import wait_until
from ztctl.main import cli

REQUESTS: list[tuple[str, str, str, dict[str, Any] | None]] = [
    ("buyer-near", "GET", "/catalog", None),
    ("buyer-far", "GET", "/catalog?x=/orders", None),
    ("buyer-near", "POST", "/catalog", None),
    ("buyer-near", "GET", "/orders/1", None),
    ("buyer-near", "GET", "/catalog/../orders/1", None),
    ("buyer-near", "GET", "/%6frders/1", None),
    ("buyer-far", "POST", "/orders/1", {"iss": shop.ISSUER, "sub": "someone"}),
    ("buyer-near", "POST", "/orders/1/2", {"iss": shop.ISSUER, "sub": "someone"}),
    ("buyer-near", "POST", "/orders/1", {"iss": "other", "sub": "someone"}),
    ("thief-near", "GET", "/catalog", None),
    ("thief-far", "POST", "/orders/1", {"iss": shop.ISSUER, "sub": "someone"}),
]


@pytest.fixture(scope="module")
def guarded(waypoint_shop: Shop) -> Shop:
    """The shop with its policies."""
    assert waypoint_shop.lab.apply(*shop.policies()) == []
    wait_until(
        lambda: waypoint_shop.get("thief-near").status == 403, "policies are enforced", timeout_s=10
    )
    return waypoint_shop


def ztctl(made: Shop, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["--lab", made.lab.names.name, *arguments])


@pytest.mark.parametrize(("caller", "method", "path", "claims"), REQUESTS)
def test_prediction_is_what_the_waypoint_does(
    guarded: Shop, caller: str, method: str, path: str, claims: dict[str, Any] | None
) -> None:
    options = ["-X", method, "--path-as-is"]
    predict = ["--from", f"{shop.SHOP}/{caller}", "--method", method]
    if claims is not None:
        token = tokens.signed(claims["iss"], claims["sub"])
        options += ["-H", f"Authorization: Bearer {token}"]
        predict += ["--claims", json.dumps(claims)]
    status = guarded.get(caller, path, *options).status
    url = f"http://my-app.{shop.SHOP}{path}"
    result = ztctl(guarded, "policy", "test", *predict, "--to", url, "-o", "json")
    decision = json.loads(result.stdout)
    assert (decision["status"] or 200, result.exit_code) == (status, 0 if status == 200 else 1)


def test_analysis_names_an_ignored_object(guarded: Shop) -> None:
    assert ztctl(guarded, "analyze", "-n", shop.SHOP).stdout == "No problem found.\n"
    target = [{"group": "", "kind": "Service", "name": "none"}]
    policy = shop.obj(
        "security.istio.io/v1", "AuthorizationPolicy", "lost", spec={"targetRefs": target}
    )
    assert guarded.lab.apply(policy, wait=False) == []
    result = wait_until(
        lambda: found if "lost" in (found := ztctl(guarded, "analyze", "-A")).stdout else None,
        "the problem is found",
    )
    assert "Service shop/none does not exist" in result.stdout
    assert result.exit_code == 0
