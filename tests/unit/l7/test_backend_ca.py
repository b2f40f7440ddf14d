# SPDX-License-Identifier: Apache-2.0
"""From a BackendTLSPolicy's references and ConfigMaps to certificates."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.certificate_authority import CertificateAuthority
from ztunnel.kube.objects.l7_kinds import MAX_CA_CERTIFICATES_CHARS
from ztunnel.l7.objects import L7Object
from ztunnel.l7.traffic.backend_ca import config_map_names, has_certificate_refs, read_authorities

CA, OTHER = CertificateAuthority(), CertificateAuthority()


def ref(name: str = "ca", **changes: Any) -> dict[str, Any]:
    return {"group": "", "kind": "ConfigMap", "name": name, **changes}


def policy(*refs: Any) -> L7Object:
    spec = {"validation": {"hostname": "a.example", "caCertificateRefs": list(refs)}}
    return L7Object(kind="BackendTLSPolicy", namespace="shop", name="tls", spec=spec)


def reasons(*refs: Any, **config_maps: Any) -> list[str]:
    return [error.reason for error in read_authorities(policy(*refs), config_maps).errors]


def test_certificates_of_all_config_maps_are_joined_without_duplicates() -> None:
    one, two = {"ca.crt": CA.pem + OTHER.pem}, {"ca.crt": CA.pem}
    found = read_authorities(policy(ref("one"), ref("two")), {"one": one, "two": two})
    assert found == (CA.pem + OTHER.pem, ())


def test_only_certificates_are_copied() -> None:
    text = f"# secret\n{CA.key_pem}\nnote\n{CA.pem}"
    found = read_authorities(policy(ref()), {"ca": {"ca.crt": text, "other": "x"}})
    assert found == (CA.pem, ())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "does not exist"),
        ({}, "has no key ca.crt"),
        ({"ca.crt": 5}, "has no key ca.crt"),
        ({"ca.crt": ""}, "is not a list of certificates"),
        ({"ca.crt": CA.key_pem}, "is not a list of certificates"),
        ({"ca.crt": CA.pem.replace("MII", "AAA")}, "is not a list of certificates"),
        ({"ca.crt": CA.pem + "x" * 300_000}, "characters"),
    ],
)
def test_config_map_without_certificates_is_an_invalid_reference(data: Any, message: str) -> None:
    pem, (error,) = read_authorities(policy(ref()), {"ca": data})
    assert pem == ""
    assert error.reason == "InvalidCACertificateRef"
    assert message in error.message
    assert error.message.startswith("spec.validation.caCertificateRefs[0]: ")


@pytest.mark.parametrize("change", [{"kind": "Secret"}, {"group": "example.com"}, {"kind": None}])
def test_other_kinds_are_invalid(change: dict[str, Any]) -> None:
    assert reasons(ref(**change), ca={"ca.crt": CA.pem}) == ["InvalidKind"]
    assert config_map_names(policy(ref(**change))) == []


def test_valid_references_count_although_others_are_invalid() -> None:
    config_maps = {"ca": {"ca.crt": CA.pem}, "gone": None}
    found = read_authorities(policy(ref("gone"), ref()), config_maps)
    assert found.pem == CA.pem
    assert [error.reason for error in found.errors] == ["InvalidCACertificateRef"]


@pytest.mark.parametrize("name", ["../other", "a/b", "..", "", "A", "a" * 254, 5, None])
def test_names_that_are_no_config_maps_are_not_read(name: Any) -> None:
    assert config_map_names(policy(ref(name))) == []
    assert reasons(ref(name)) == ["InvalidCACertificateRef"]


def test_number_and_size_are_limited() -> None:
    names = [f"ca{index}" for index in range(9)]
    config_maps = {name: {"ca.crt": CA.pem} for name in names}
    many = policy(*map(ref, names))
    assert config_map_names(many) == names[:8]
    assert "more than 8" in read_authorities(many, config_maps).errors[0].message
    count = MAX_CA_CERTIFICATES_CHARS // len(CA.pem) + 20
    large = "".join(CertificateAuthority(f"n{index}").pem for index in range(count))
    pem, (error,) = read_authorities(policy(ref()), {"ca": {"ca.crt": large}})
    assert pem == ""
    assert "65536 characters" in error.message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)


@given(refs=JSON, data=st.dictionaries(st.just("ca.crt"), st.text() | JSON))
def test_any_reference_and_data_yield_a_result(refs: Any, data: Any) -> None:
    spec = {"validation": {"caCertificateRefs": refs}}
    one = L7Object(kind="BackendTLSPolicy", namespace="shop", name="tls", spec=spec)
    found = read_authorities(one, dict.fromkeys(config_map_names(one), data))
    assert bool(found.errors) is has_certificate_refs(one)
    assert read_authorities(policy(ref()), {"ca": data}).errors
