# SPDX-License-Identifier: Apache-2.0
"""Policies and decisions, queried from an agent and rendered as text."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from ztctl import admin_client, output
from ztctl.context import Context
from ztctl.errors import CommandError, NotReachableError
from ztctl.output import Column, Row
from ztctl.resources import Resource

_CONSIDERED_COLUMNS = (
    Column("ACTION", "action"),
    Column("POLICY", "policy"),
    Column("MATCHES", "matches"),
    Column("DRY-RUN", "dry_run"),
)


def target_workloads(policy: Row) -> str:
    """The workloads that a policy selects, as namespaces and labels."""
    definition = policy.get("definition") or {}
    if policy["kind"] == "PeerAuthentication":
        selections = [definition.get("selection") or {}]
    else:
        selections = definition.get("selections") or []
    return "; ".join(map(_render_selection, selections)) or "nothing"


def _render_selection(selection: Row) -> str:
    if selection.get("uid"):
        return str(selection["uid"]).rpartition("Pod/")[2]
    namespace = selection.get("namespace") or "all namespaces"
    labels = ",".join(f"{key}={value}" for key, value in (selection.get("labels") or {}).items())
    return f"{namespace} {labels}" if labels else str(namespace)


POLICIES = Resource(
    "policy",
    "/v1/policies",
    "Policies, as the agent sees them. An invalid policy has a message with the effect.",
    (
        Column("KIND", "kind"),
        Column("NAMESPACE", "namespace"),
        Column("NAME", "name"),
        Column("ACTION", "action"),
        Column("TARGETS", "targets"),
        Column("STATE", "state"),
        Column("MESSAGE", "message"),
    ),
    per_node=False,
    computed={"targets": target_workloads},
)


def query_any_agent(context: Context, path: str, **query: str) -> Any:
    """The response of the first agent that is reachable: all agents have the same policies."""
    errors = []
    for target in context.targets():
        try:
            response = admin_client.get(target.run_dir, f"{path}?{urlencode(query)}")
        except CommandError as error:
            errors.append(f"{target.node}: {error.message}")
            continue
        if "error" in response:
            raise CommandError(response["error"])
        return response
    raise NotReachableError("; ".join(errors))


def render_decision(decision: Row) -> str:
    """The response of `/v1/policy/test` as text."""
    source, destination = decision["from"], decision["to"]
    fields = {
        "decision": "allowed" if decision["allowed"] else "DENIED",
        "reason": decision["reason"],
        "from": f"{source['workload'] or 'unknown workload'} {source['address']}",
        "identity": source["identity"] or "none",
        "to": (
            f"{destination['workload'] or 'unknown workload'} "
            f"{destination['address']} port {destination['port']}"
        ),
        "path": decision["path"],
    }
    if decision.get("mtls"):
        fields["mtls"] = " ".join(filter(None, decision["mtls"].values()))
    if decision.get("dry_run"):
        fields["dry-run"] = decision["dry_run"]
    text = output.render_fields(fields)
    if decision.get("considered"):
        text += "\n\n" + output.render_table(_CONSIDERED_COLUMNS, decision["considered"])
    return text
