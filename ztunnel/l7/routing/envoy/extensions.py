# SPDX-License-Identifier: Apache-2.0
"""Envoy's extensions by name, with the type of their configuration."""

from __future__ import annotations

from typing import Any

from ztunnel.l7.config import Json

_EXTENSIONS = "type.googleapis.com/envoy.extensions"


def typed(name: str, type_name: str, /, **fields: Any) -> Json:
    """An extension: `type_name` is relative to `envoy.extensions`."""
    return {
        "name": name,
        "typed_config": {"@type": f"{_EXTENSIONS}.{type_name}", **fields},
    }


def matcher_input(name: str, type_name: str) -> Json:
    """An input of a listener's matcher; `type_name` is relative to the inputs' package."""
    full = f"{_EXTENSIONS}.matching.common_inputs.network.v3.{type_name}"
    return {
        "name": f"envoy.matching.inputs.{name}",
        "typed_config": {"@type": full},
    }


def http_filter(name: str, type_name: str, /, **fields: Any) -> Json:
    """An HTTP filter; `type_name` is relative to `envoy.extensions.filters.http`."""
    return typed(f"envoy.filters.http.{name}", f"filters.http.{type_name}", **fields)


def network_filter(name: str, type_name: str, /, **fields: Any) -> Json:
    """A network filter; `type_name` is relative to `envoy.extensions.filters.network`."""
    return typed(f"envoy.filters.network.{name}", f"filters.network.{type_name}", **fields)


def listener_filter(name: str, type_name: str, /, **fields: Any) -> Json:
    """A listener filter; `type_name` is relative to `envoy.extensions.filters.listener`."""
    return typed(f"envoy.filters.listener.{name}", f"filters.listener.{type_name}", **fields)
