# SPDX-License-Identifier: Apache-2.0
"""A real Envoy verifies tokens as RequestAuthentications require."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode
from collections.abc import Iterator
from typing import Any

import pytest

from tests.envoy.security.rig import (
    Object,
    Rig,
    authorization_policy,
    request_authentication,
    rule,
)
from tests.envoy.security.tokens import Issuer

SHOP, OTHER, REMOTE = Issuer("https://shop.example"), Issuer("other"), Issuer("remote")
STRANGER = Issuer("https://shop.example")  # the same name, another key
HOST = ("host", "web")


def trust(issuer: Issuer, **fields: Any) -> Object:
    """A jwtRule with inline keys."""
    return {"issuer": issuer.name, "jwks": issuer.jwks, **fields}


def when(key: str, *values: str) -> Object:
    return {"key": key, "values": list(values)}


SERVICES: dict[str, list[Object]] = {
    "optional": [request_authentication("optional", trust(SHOP))],
    "required": [
        request_authentication("required", trust(SHOP)),
        authorization_policy("required", [rule({"requestPrincipals": ["*"]})]),
    ],
    "alice": [
        request_authentication("alice", trust(SHOP)),
        authorization_policy(
            "alice", [rule({"requestPrincipals": ["https://shop.example/alice"]})]
        ),
    ],
    "audience": [request_authentication("audience", trust(SHOP, audiences=["web", "api"]))],
    "claims": [
        request_authentication("claims", trust(SHOP)),
        authorization_policy(
            "claims",
            [
                rule(None, {"paths": ["/group"]}, when("request.auth.claims[groups]", "dev*")),
                rule(None, {"paths": ["/nested"]}, when("request.auth.claims[a][b]", "x")),
                rule(None, {"paths": ["/scope"]}, when("request.auth.claims[scope]", "read")),
                rule(None, {"paths": ["/aud"]}, when("request.auth.audiences", "web")),
                rule(None, {"paths": ["/azp"]}, when("request.auth.presenter", "app")),
            ],
        ),
    ],
    "no-token": [
        request_authentication("no-token", trust(SHOP)),
        authorization_policy("no-token", [rule({"notRequestPrincipals": ["*"]})], "DENY"),
    ],
    "places": [
        request_authentication(
            "places",
            trust(
                SHOP,
                fromHeaders=[{"name": "X-Token", "prefix": "T "}],
                fromParams=["token"],
                fromCookies=["session"],
            ),
        ),
        authorization_policy("places", [rule({"requestPrincipals": ["*"]})]),
    ],
    "outputs": [
        request_authentication(
            "outputs",
            trust(
                SHOP,
                outputPayloadToHeader="X-Jwt-Payload",
                outputClaimToHeaders=[
                    {"header": "x-jwt-sub", "claim": "sub"},
                    {"header": "x-jwt-level", "claim": "a.level"},
                ],
            ),
        )
    ],
    "forward": [request_authentication("forward", trust(SHOP, forwardOriginalToken=True))],
    "two": [request_authentication("two", trust(SHOP), trust(OTHER))],
    "two-places": [
        request_authentication(
            "two-places", trust(SHOP), trust(OTHER, fromHeaders=[{"name": "x-other"}])
        )
    ],
    "invalid": [request_authentication("invalid", {"issuer": "x", "jwks": "no JSON"})],
}


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = Rig()
    for name, objects in SERVICES.items():
        rig.add(name, objects)
    with rig.run(tmp_path_factory.mktemp("jwt")) as running:
        yield running


def status(rig: Rig, service: str, *headers: tuple[str, str], path: str = "/") -> int:
    return rig.call(service, path=path, headers=[HOST, *headers]).status


def received(rig: Rig, service: str, *headers: tuple[str, str]) -> dict[str, str]:
    """The headers that the backend gets."""
    reply = rig.call(service, headers=[HOST, *headers])
    assert reply.status == 200, reply
    found: dict[str, str] = json.loads(reply.body)["headers"]
    return found


def test_request_without_token_passes_and_invalid_token_is_rejected(rig: Rig) -> None:
    assert status(rig, "optional") == 200
    assert status(rig, "optional", SHOP.bearer()) == 200
    assert status(rig, "optional", SHOP.bearer(exp=1)) == 401
    assert status(rig, "optional", STRANGER.bearer()) == 401
    assert status(rig, "optional", OTHER.bearer()) == 401
    assert status(rig, "optional", ("authorization", "Bearer x.y.z")) == 401


def test_token_can_be_required(rig: Rig) -> None:
    assert status(rig, "required") == 403
    assert status(rig, "required", SHOP.bearer()) == 200
    assert status(rig, "required", STRANGER.bearer()) == 401


def test_request_principal_is_issuer_and_subject(rig: Rig) -> None:
    assert status(rig, "alice", SHOP.bearer()) == 200
    assert status(rig, "alice", SHOP.bearer(sub="bob")) == 403


def test_audience_is_checked(rig: Rig) -> None:
    assert status(rig, "audience", SHOP.bearer(aud="api")) == 200
    assert status(rig, "audience", SHOP.bearer(aud=["x", "web"])) == 200
    assert status(rig, "audience", SHOP.bearer(aud="x")) == 403
    assert status(rig, "audience", SHOP.bearer()) == 403


@pytest.mark.parametrize(
    ("path", "claims", "expected"),
    [
        ("/group", {"groups": ["ops", "developers"]}, 200),
        ("/group", {"groups": "dev"}, 200),
        ("/group", {"groups": ["ops"]}, 403),
        ("/group", {"groups": [["dev"]]}, 403),
        ("/group", {}, 403),
        ("/nested", {"a": {"b": "x"}}, 200),
        ("/nested", {"a": "x"}, 403),
        ("/nested", {"a.b": "x", "a": {"c": "x"}}, 403),
        ("/scope", {"scope": "write read"}, 200),
        ("/scope", {"scope": "readonly"}, 403),
        ("/aud", {"aud": ["web"]}, 200),
        ("/azp", {"azp": "app"}, 200),
        ("/azp", {"azp": 1}, 403),
    ],
)
def test_claims_are_matched(rig: Rig, path: str, claims: Object, expected: int) -> None:
    assert status(rig, "claims", SHOP.bearer(**claims), path=path) == expected


def test_requests_without_token_can_be_denied(rig: Rig) -> None:
    assert status(rig, "no-token") == 403
    assert status(rig, "no-token", SHOP.bearer()) == 200


def test_token_is_read_from_headers_parameters_and_cookies(rig: Rig) -> None:
    token = SHOP.token()
    assert status(rig, "places", ("x-token", f"T {token}")) == 200
    assert status(rig, "places", ("cookie", f"session={token}")) == 200
    assert status(rig, "places", path=f"/?token={token}") == 200
    assert status(rig, "places", SHOP.bearer()) == 403  # not the place of this rule


def test_outputs_are_headers_of_the_request(rig: Rig) -> None:
    headers = received(rig, "outputs", SHOP.bearer(a={"level": 7}))
    payload = headers["x-jwt-payload"]
    claims = json.loads(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    assert claims["sub"] == headers["x-jwt-sub"] == "alice"
    assert headers["x-jwt-level"] == "7"
    assert "authorization" not in headers


def test_output_headers_of_the_client_are_removed(rig: Rig) -> None:
    forged = [("X-Jwt-Payload", "e30"), ("x-jwt-sub", "admin"), ("X-JWT-Level", "9")]
    assert (
        not {"x-jwt-payload", "x-jwt-sub", "x-jwt-level"} & received(rig, "outputs", *forged).keys()
    )
    headers = received(rig, "outputs", SHOP.bearer(), *forged)
    assert headers["x-jwt-sub"] == "alice"
    assert "x-jwt-level" not in headers


def test_original_token_is_forwarded_on_request(rig: Rig) -> None:
    assert received(rig, "forward", SHOP.bearer())["authorization"].startswith("Bearer ")
    assert "authorization" not in received(rig, "optional", SHOP.bearer())


def test_several_issuers_may_share_a_place(rig: Rig) -> None:
    assert status(rig, "two") == 200
    assert status(rig, "two", SHOP.bearer()) == 200
    assert status(rig, "two", OTHER.bearer()) == 200
    assert status(rig, "two", STRANGER.bearer()) == 401


def test_invalid_token_in_the_only_used_place_is_rejected(rig: Rig) -> None:
    assert status(rig, "two-places", ("x-other", OTHER.token())) == 200
    assert status(rig, "two-places", ("x-other", STRANGER.token())) == 401
    assert status(rig, "two-places", STRANGER.bearer()) == 401


def test_invalid_object_denies_everything(rig: Rig) -> None:
    assert status(rig, "invalid") == 403
    assert status(rig, "invalid", SHOP.bearer()) == 403
