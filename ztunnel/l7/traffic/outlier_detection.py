# SPDX-License-Identifier: Apache-2.0
"""DestinationRule's outlierDetection as fields of a cluster, with Istio's defaults."""

from __future__ import annotations

from ztunnel.kube.objects.fields import Fields
from ztunnel.l7.api.istio.values import duration, integer
from ztunnel.l7.config import Json


def outlier_fields(fields: Fields) -> Json:
    """Return fields of the cluster. Raises TranslateError."""
    fields.allow_only(
        *("consecutive5xxErrors", "consecutiveGatewayErrors", "consecutiveErrors", "interval"),
        *("baseEjectionTime", "maxEjectionPercent", "minHealthPercent"),
        *("splitExternalLocalOriginErrors", "consecutiveLocalOriginFailures"),
    )
    detection: Json = {"enforcing_success_rate": 0}  # Istio does not compare endpoints
    for ours, theirs in (
        ("consecutive5xxErrors", "consecutive_5xx"),
        ("consecutiveGatewayErrors", "consecutive_gateway_failure"),
        ("consecutiveErrors", "consecutive_gateway_failure"),  # the older name
    ):
        count = integer(fields, ours)
        if count is not None:  # 0 disables the criterion
            detection |= {theirs: max(count, 1), f"enforcing_{theirs}": 100 if count else 0}
    if fields.boolean("splitExternalLocalOriginErrors"):
        detection["split_external_local_origin_errors"] = True
        count = integer(fields, "consecutiveLocalOriginFailures")
        if count is not None:
            detection |= {
                "consecutive_local_origin_failure": max(count, 1),
                "enforcing_consecutive_local_origin_failure": 100 if count else 0,
            }
            detection["enforcing_local_origin_success_rate"] = 0
    for ours, theirs in (("interval", "interval"), ("baseEjectionTime", "base_ejection_time")):
        if text := duration(fields, ours):
            detection[theirs] = text
    if most := integer(fields, "maxEjectionPercent", 0, 100):
        detection["max_ejection_percent"] = most
    healthy = integer(fields, "minHealthPercent", 0, 100) or 0
    return {
        "outlier_detection": detection,
        "common_lb_config": {"healthy_panic_threshold": {"value": healthy}},
    }
