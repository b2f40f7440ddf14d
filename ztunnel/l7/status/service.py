# SPDX-License-Identifier: Apache-2.0
"""The condition istio.io/WaypointBound of Services and ServiceEntries, as in Istio's ambient mode.

True   WaypointAccepted      connections pass the waypoint
False  WaypointMissing       the Gateway does not exist: connections are refused
False  AttachmentDenied      the Gateway does not admit the namespace: connections are refused
False  WaypointIsNotReady    no pod of the Gateway is ready: connections are refused
(none)                       no waypoint is requested, or it does not accept service traffic
"""

from __future__ import annotations

from ztunnel.l7.status.conditions import Condition

WAYPOINT_BOUND = "istio.io/WaypointBound"


def waypoint_bound(
    waypoint: str, error: str, *, exists: bool, ready: bool, foreign: str = ""
) -> Condition | None:
    """Return the condition for a resolved waypoint, `namespace/name`; None if there is none.

    `error`: why it cannot be used. `foreign`: the other controller that runs the Gateway; its
    readiness is not ours to report.
    """
    if not waypoint:
        return None
    if not exists:
        text = error or f"waypoint {waypoint} does not exist"
        return Condition(WAYPOINT_BOUND, False, "WaypointMissing", f"{text}: connections refused")
    if error:
        return Condition(WAYPOINT_BOUND, False, "AttachmentDenied", error)
    if not ready and not foreign:
        text = f"waypoint {waypoint} has no ready pod: connections refused"
        return Condition(WAYPOINT_BOUND, False, "WaypointIsNotReady", text)
    text = f"Successfully attached to waypoint {waypoint}"
    return Condition(WAYPOINT_BOUND, True, "WaypointAccepted", text)
