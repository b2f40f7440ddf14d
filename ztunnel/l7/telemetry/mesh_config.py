# SPDX-License-Identifier: Apache-2.0
"""Defaults of telemetry: the settings of the process, and Istio's MeshConfig.

Of MeshConfig: accessLogFile, accessLogEncoding, extensionProviders[].opentelemetry,
defaultProviders.tracing, defaultConfig.tracing.sampling (istio.io, "Global Mesh Options").
"""

from __future__ import annotations

from dataclasses import dataclass

from ztunnel.kube.objects.fields import Fields, TranslateError
from ztunnel.l7.config import Json
from ztunnel.l7.inputs import AccessLogEncoding, Settings
from ztunnel.l7.telemetry.tracing import collector_cluster

SETTING = "otlp"  # the name of the collector that the process's settings state
STDOUT = "/dev/stdout"
MAX_COLLECTORS = 16


@dataclass(frozen=True)
class MeshTelemetry:
    """`collectors`: the cluster of each provider of traces, by the provider's name.

    `tracing`: the provider that applies without a Telemetry object, empty for none.
    """

    access_log: bool
    encoding: AccessLogEncoding
    collectors: dict[str, Json]
    tracing: str
    sampling_percent: float


def mesh_telemetry(settings: Settings) -> MeshTelemetry:
    """Return the defaults. Members of MeshConfig that are invalid count as absent."""
    config = Fields(dict(settings.mesh_config), "")
    collectors = _collectors(settings, config)
    names = _default_providers(config)
    default = next((name for name in names if name in collectors), "")
    return MeshTelemetry(
        access_log=settings.access_log or _text(config, "accessLogFile") == STDOUT,
        encoding=_encoding(settings, config),
        collectors=collectors,
        tracing=SETTING if SETTING in collectors else default,
        sampling_percent=_sampling(settings, config),
    )


def _collectors(settings: Settings, config: Fields) -> dict[str, Json]:
    found: dict[str, Json] = {}
    endpoints = {SETTING: settings.otlp_endpoint} if settings.otlp_endpoint else {}
    for name, endpoint in (endpoints | _provider_endpoints(config)).items():
        try:
            found[name] = collector_cluster(name, endpoint)
        except ValueError:
            continue
    return found


def _provider_endpoints(config: Fields) -> dict[str, str]:
    found: dict[str, str] = {}
    try:
        providers = list(config.mappings("extensionProviders"))
    except TranslateError:
        return found
    for provider in providers[:MAX_COLLECTORS]:
        try:
            target = provider.mapping("opentelemetry")
            name, port = provider.string("name"), target.port("port")
            host = target.string("service").rpartition("/")[2]  # namespace/host, or host
        except TranslateError:
            continue
        if name and host and port:
            found[name] = f"{host}:{port}"
    return found


def _default_providers(config: Fields) -> list[str]:
    try:
        return config.mapping("defaultProviders").strings("tracing")
    except TranslateError:
        return []


def _encoding(settings: Settings, config: Fields) -> AccessLogEncoding:
    if _text(config, "accessLogEncoding") == "JSON":
        return AccessLogEncoding.JSON
    return settings.access_log_encoding


def _sampling(settings: Settings, config: Fields) -> float:
    try:
        tracing = config.mapping("defaultConfig").mapping("tracing")
        found = tracing.number("sampling", 0, 100)
    except TranslateError:
        found = None
    return settings.trace_sampling_percent if found is None else found


def _text(config: Fields, name: str) -> str:
    try:
        return config.string(name)
    except TranslateError:
        return ""
