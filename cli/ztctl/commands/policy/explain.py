# SPDX-License-Identifier: Apache-2.0
"""`ztctl policy explain`: the reason for a denial in the access log."""

from __future__ import annotations

import sys
from typing import Any

import click
import yaml

from ztctl import output
from ztctl.commands.policy.query import query_any_agent, render_decision
from ztctl.context import Context, output_option, target_options
from ztctl.errors import CommandError, NotReachableError
from ztctl.output import Format, Row
from ztunnel.mesh.ports import HBONE
from ztunnel.telemetry import access_log_parser
from ztunnel.telemetry.response_flags import Flag


@click.command()
@click.argument("line", default="-")
@target_options
@output_option
@click.pass_obj
def explain(context: Context, line: str) -> None:
    """Explain why a connection was denied, from its LINE in the access log.

    LINE is `-` for standard input, the default. The last denial in the input is explained. The
    line may be from the destination's node or from the client's node. The output includes the
    decision that the current policies make on the same connection.

    \b
    Examples:
      grep denied /var/log/ztunnel.log | ztctl policy explain
      ztctl policy explain "$(tail -1 proxy.log)"
    """
    denial = _last_denial(sys.stdin.read() if line == "-" else line)
    query = _query(denial)
    now = query_any_agent(context, "/v1/policy/test", **query)
    name = denial.get("policy", "").partition(" ")[2]
    explanation = {
        "denied": {
            "at": denial.get("timestamp", ""),
            "from": _render_peer(denial, "src"),
            "to": _render_peer(denial, "dst"),
            "policy": denial.get("policy", ""),
            "rule": denial.get("rule", ""),
            "reason": denial.get("error", ""),
        },
        "policy_now": _current_policy(context, name) if name else None,
        "now": now,
        "to_allow": _to_allow(now, query),
    }
    if context.output_format is Format.TABLE:
        click.echo(_render(explanation, name))
    else:
        click.echo(output.render_data(explanation, context.output_format))


def _render(explanation: Row, policy_name: str) -> str:
    paragraphs = [output.render_fields({"denied": explanation["denied"]})]
    policy = explanation["policy_now"]
    if policy:
        definition = yaml.safe_dump(policy["definition"], sort_keys=False).rstrip()
        paragraphs.append(f"Current definition of the policy ({policy['state']}):\n{definition}")
    elif policy_name:
        paragraphs.append("The policy does not exist any more.")
    paragraphs.append(f"Current decision:\n{render_decision(explanation['now'])}")
    if explanation["to_allow"]:
        paragraphs.append(f"hint: to allow the connection, {explanation['to_allow']}")
    return "\n\n".join(paragraphs)


def _last_denial(text: str) -> dict[str, str]:
    """The fields of the last access log line with the response flag DENY."""
    denials = []
    for line in filter(str.strip, text.splitlines()):
        try:
            fields = access_log_parser.parse(line)
        except access_log_parser.LineError:
            continue
        if fields.get("response_flags") == Flag.DENY:
            denials.append(fields)
    if not denials:
        raise CommandError(
            f"no denial in the input: no access log line has response_flags={Flag.DENY}; "
            "hint: use the line from the log of the destination's node"
        )
    return denials[-1]


def _query(denial: Row) -> dict[str, str]:
    """The query of `/v1/policy/test` for the denied connection."""
    destination = denial.get("dst.addr", "")
    if destination.endswith(f":{HBONE}"):  # the client's line: the app's address is the authority
        destination = denial.get("dst.hbone_addr", "")
    source = denial.get("src.addr", "").rpartition(":")[0].strip("[]")
    if not source or not destination:
        raise CommandError("the line has no src.addr or no dst.addr; hint: pass the whole line")
    return {"from": source, "to": destination, "identity": denial.get("src.identity", "")}


def _current_policy(context: Context, name: str) -> Any:
    try:
        policies: list[Row] = query_any_agent(context, "/v1/policy", name=name)["policies"]
    except NotReachableError:
        raise
    except CommandError:  # it was deleted
        return None
    return policies[0]


def _render_peer(denial: Row, side: str) -> str:
    name = denial.get(f"{side}.workload", "")
    workload = f"{denial.get(f'{side}.namespace', '')}/{name} " if name else ""
    identity = denial.get(f"{side}.identity") or "no identity"
    return f"{workload}{denial.get(f'{side}.addr', '')} ({identity})"


def _to_allow(now: Row, query: Row) -> str:
    """The change that allows the connection; empty if it is allowed, or if no change allows it."""
    if now["allowed"] or now["cause"] == "reserved_port":
        return ""
    if now["cause"] == "plaintext":
        return "enroll the client, or set portLevelMtls of the port to PERMISSIVE"
    if now.get("rule"):
        return f"change {now['rule']} of {now['policy']}, or the policy's selector"
    principal = query["identity"].removeprefix("spiffe://")
    source = {"principals": [principal]} if principal else {"ipBlocks": [query["from"]]}
    port = str(now["to"]["port"])
    rule = {"from": [{"source": source}], "to": [{"operation": {"ports": [port]}}]}
    dumped = yaml.safe_dump([rule], sort_keys=False, default_flow_style=True, width=1000).strip()
    return f"add to an ALLOW policy of that namespace: rules: {dumped}"
