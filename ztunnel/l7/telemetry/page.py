# SPDX-License-Identifier: Apache-2.0
"""Envoy's page for Prometheus, with the names and values that Istio's dashboards expect."""

from __future__ import annotations

import re

UNKNOWN = b"unknown"  # Istio's value of a label whose value is not known
_PREFIX = b"envoy_"  # Envoy puts it before all names
_ISTIO = b"envoy_istio_"
_TYPE = b"# TYPE "
# In the exposition format, a quote inside a value is escaped, so that this is an empty value.
_EMPTY = re.compile(rb'(?<!grpc_response_status)=""')


def prometheus_page(page: bytes) -> bytes:
    """Rewrite the response of Envoy's `/stats/prometheus`.

    Istio's metrics lose the prefix `envoy_`. Their empty labels become `unknown`, except the gRPC
    status of a request that is not gRPC.
    """
    return b"\n".join([_line(line) for line in page.split(b"\n")])


def _line(line: bytes) -> bytes:
    if line.startswith(_ISTIO):
        return _EMPTY.sub(b'="' + UNKNOWN + b'"', line).removeprefix(_PREFIX)
    if line.startswith(_TYPE + _ISTIO):
        return _TYPE + line[len(_TYPE) + len(_PREFIX) :]
    return line
