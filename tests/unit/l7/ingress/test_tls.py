# SPDX-License-Identifier: Apache-2.0
"""TLS of a gateway's listeners: secrets, options, authorities for clients."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.waypoint.world import World
from ztunnel.l7.config import GatewayConfig
from ztunnel.l7.names import (
    GATEWAY_CERTIFICATES_DIRECTORY,
    CertificateSource,
    TypeUrl,
    ca_id,
    certificate_id,
)
from ztunnel.l7.problems import Problem, Severity

WEB = certificate_id("Secret", "default", "web")
CLIENTS = ca_id([CertificateSource("ConfigMap", "default", "clients")])


def compiled(
    options: dict[str, str] | None = None,
    frontend: dict[str, Any] | None = None,
    files: tuple[str, ...] = (f"{WEB}.crt",),
    protocol: str = "HTTPS",
) -> GatewayConfig:
    world = World()
    world.service("web", waypoint="")
    listener = {
        "name": "web",
        "port": 443,
        "protocol": protocol,
        "tls": {"certificateRefs": [{"name": "web"}], "options": options or {}},
    }
    world.add(
        {
            "kind": "Gateway",
            "metadata": {
                "name": "edge",
                "namespace": "default",
                "annotations": {
                    "ztunnel.dev/gateway-certificates": json.dumps(dict.fromkeys(files, "0"))
                },
            },
            "spec": {
                "gatewayClassName": "ztunnel",
                "listeners": [listener],
                **({"tls": {"frontend": frontend}} if frontend else {}),
            },
        }
    )
    world.add(
        {
            "kind": "TLSRoute" if protocol == "TLS" else "HTTPRoute",
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {
                "parentRefs": [{"name": "edge"}],
                "hostnames": ["web.example.com"],
                "rules": [{"backendRefs": [{"name": "web", "port": 80}]}],
            },
        }
    )
    return world.compile("default/edge")


def chains(config: GatewayConfig) -> list[dict[str, Any]]:
    return [
        chain
        for listener in config.resources[TypeUrl.LISTENER].values()
        for chain in listener["filter_chains"]
    ]


def of_gateway(config: GatewayConfig) -> list[Problem]:
    return [each for each in config.problems if each.kind == "Gateway"]


def test_secret_names_the_files_and_has_no_content() -> None:
    config = compiled()
    (secret,) = config.resources[TypeUrl.SECRET].values()
    pair = secret["tls_certificate"]
    directory = f"{GATEWAY_CERTIFICATES_DIRECTORY}/..data"
    assert pair["certificate_chain"] == {"filename": f"{directory}/{WEB}.crt"}
    assert pair["private_key"] == {"filename": f"{directory}/{WEB}.key"}
    context = chains(config)[0]["transport_socket"]["typed_config"]["common_tls_context"]
    names = [each["name"] for each in context["tls_certificate_sds_secret_configs"]]
    assert names == list(config.resources[TypeUrl.SECRET]) == [WEB]
    assert of_gateway(config) == []


@pytest.mark.parametrize("protocol", ["HTTPS", "TLS"])
def test_listener_without_usable_certificate_has_no_chain(protocol: str) -> None:
    config = compiled(files=(), protocol=protocol)
    assert config.resources[TypeUrl.LISTENER] == config.resources[TypeUrl.SECRET] == {}
    assert [each.reason for each in of_gateway(config)] == ["InvalidCertificateRef"]


def test_unknown_option_is_reported() -> None:
    config = compiled({"example.com/option": "1"})
    (problem,) = of_gateway(config)
    assert (problem.severity, problem.field) == (
        Severity.IGNORED,
        "spec.listeners[0].tls.options",
    )
    assert chains(config)


@pytest.mark.parametrize("mode", ["MUTUAL", "OPTIONAL_MUTUAL", "anything"])
def test_option_that_asks_for_client_certificates_closes_the_listener(mode: str) -> None:
    config = compiled({"gateway.istio.io/tls-terminate-mode": mode})
    assert chains(config) == []
    assert [each.severity for each in of_gateway(config)] == [Severity.ERROR]


def test_istio_option_for_simple_tls_has_the_effect_of_none() -> None:
    assert of_gateway(compiled({"gateway.istio.io/tls-terminate-mode": "SIMPLE"})) == []


VALIDATION = {
    "default": {
        "validation": {"caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": "clients"}]}
    }
}


def test_clients_are_validated_by_the_bundle_of_the_references() -> None:
    config = compiled(frontend=VALIDATION, files=(f"{WEB}.crt", f"{CLIENTS}.ca"))
    assert set(config.resources[TypeUrl.SECRET]) == {WEB, f"{CLIENTS}.ca"}
    context = chains(config)[0]["transport_socket"]["typed_config"]
    assert context["require_client_certificate"] is True


def test_https_without_valid_authorities_is_closed() -> None:
    config = compiled(frontend=VALIDATION)
    assert chains(config) == []
    assert Severity.ERROR in {each.severity for each in of_gateway(config)}


def test_clients_of_other_protocols_are_not_validated() -> None:
    """Gateway API: the validation concerns HTTPS."""
    config = compiled(frontend=VALIDATION, protocol="TLS")
    assert "require_client_certificate" not in str(chains(config))
    assert len(chains(config)) == 1


def test_invalid_validation_closes_https() -> None:
    invalid = {"default": {"validation": {"mode": "Maybe", "caCertificateRefs": []}}}
    config = compiled(frontend=invalid)
    assert chains(config) == []
    assert Severity.ERROR in {each.severity for each in of_gateway(config)}
