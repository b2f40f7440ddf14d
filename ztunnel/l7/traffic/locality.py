# SPDX-License-Identifier: Apache-2.0
"""Locality load balancing: DestinationRule's localityLbSetting, as in Istio.

A locality is `region/zone/subzone`. With outlier detection, endpoints near the waypoint are
preferred, and others are used if those are ejected. `distribute` sends shares of the requests to
localities instead.
"""

from __future__ import annotations

from ztunnel.kube.objects.fields import Fields
from ztunnel.l7.api.istio.values import Reporter, integer
from ztunnel.l7.config import Locality, LocalityPolicy
from ztunnel.l7.problems import Severity
from ztunnel.mesh.model import Workload

REGION = "topology.kubernetes.io/region"
ZONE = "topology.kubernetes.io/zone"
SUBZONE = "topology.istio.io/subzone"
NOWHERE: Locality = ("", "", "")


def locality_of(workload: Workload | None) -> Locality:
    """The locality of a workload, from its labels."""
    if workload is None:
        return NOWHERE
    labels = workload.labels
    return labels.get(REGION, ""), labels.get(ZONE, ""), labels.get(SUBZONE, "")


def parse_locality(text: str) -> Locality:
    """`region/zone/subzone`, of which later parts may be absent."""
    region, zone, subzone = (*text.split("/", 2), "", "", "")[:3]
    return region, zone, subzone


def locality_policy(
    balancer: Fields | None, own: str, reporter: Reporter, *, has_outlier_detection: bool
) -> LocalityPolicy | None:
    """Return the policy for a waypoint in the locality `own`. Raises TranslateError."""
    setting = balancer.mapping("localityLbSetting") if balancer is not None else Fields({}, "")
    setting.allow_only("enabled", "distribute", "failover", "failoverPriority")
    reporter.ignored(setting, "failoverPriority")
    shares, failover = _distribution(setting, own), _failover(setting, own)
    if not setting.boolean("enabled", True):
        return None
    if (setting.has("distribute") or setting.has("failover")) and not own:
        path = setting.path("").rstrip(".")
        reporter.report(
            Severity.WARNING, path, "has no effect: the waypoint's locality is not known"
        )
    if not own:
        return None
    if shares:
        return LocalityPolicy(parse_locality(own), shares)
    if has_outlier_detection:
        return LocalityPolicy(parse_locality(own), failover=failover)
    if setting.has("failover"):
        path = setting.path("failover")
        reporter.report(Severity.IGNORED, path, "has no effect without outlierDetection")
    return None


def priority(policy: LocalityPolicy, locality: Locality) -> int:
    """The distance of an endpoint: 0 is the same subzone; higher values are used later."""
    for distance, parts in ((0, 3), (1, 2), (2, 1)):
        if locality[:parts] == policy.own[:parts]:
            return distance
    return 3 if not policy.failover or locality[0] == policy.failover else 4


def matches(pattern: str, locality: Locality) -> bool:
    """Whether `region`, `region/zone`, `region/*` or `*` covers a locality."""
    for want, have in zip(pattern.split("/", 2), locality, strict=False):
        if want == "*":
            return True
        if want != have:
            return False
    return True


def _distribution(setting: Fields, own: str) -> tuple[tuple[str, int], ...]:
    found: tuple[tuple[str, int], ...] = ()
    for each in setting.mappings("distribute"):
        each.allow_only("from", "to")
        to = each.mapping("to")
        shares = tuple((name, integer(to, name, 0, 100) or 0) for name in to.names())
        if sum(weight for _, weight in shares) != 100:
            raise each.error("to", "weights whose sum is 100")
        if own and not found and matches(each.string("from"), parse_locality(own)):
            found = shares
    return found


def _failover(setting: Fields, own: str) -> str:
    found = ""
    for each in setting.mappings("failover"):
        each.allow_only("from", "to")
        if each.string("from") == parse_locality(own)[0]:
            found = found or each.string("to")
    return found
