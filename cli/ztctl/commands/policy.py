# SPDX-License-Identifier: Apache-2.0
"""`ztctl policy list|show|test|explain`: what there is, what it decides, and why."""

from __future__ import annotations

import sys
from typing import Any
from urllib.parse import urlencode

import click
import yaml

from ztctl import admin_client, output
from ztctl.commands import lists
from ztctl.commands.lists import Listing
from ztctl.context import Context, output_option, target_options
from ztctl.errors import FAILED, CommandError, NotReachableError
from ztctl.output import Column, Format, Row
from ztunnel.mesh.ports import HBONE
from ztunnel.telemetry import access_log_parser


def _takes(policy: Row) -> str:
    """Whom a policy is for, in a few words."""
    definition = policy.get("definition") or {}
    if policy["kind"] == "PeerAuthentication":
        selections = [definition.get("selection") or {}]
    else:
        selections = definition.get("selections") or []
    return "; ".join(map(_selected, selections)) or "nothing"


def _selected(selection: Row) -> str:
    if selection.get("uid"):
        return str(selection["uid"]).rpartition("Pod/")[2]
    place = selection.get("namespace") or "all namespaces"
    labels = ",".join(f"{key}={value}" for key, value in (selection.get("labels") or {}).items())
    return f"{place} {labels}" if labels else str(place)


POLICIES = Listing(
    "policy",
    "/v1/policies",
    "Policies as the agent knows them; refused ones with the reason and what is done instead.",
    (
        Column("KIND", "kind"),
        Column("NAMESPACE", "namespace"),
        Column("NAME", "name"),
        Column("ACTION", "action"),
        Column("TAKES", "takes"),
        Column("STATE", "state"),
        Column("MESSAGE", "message"),
    ),
    per_node=False,
    computed={"takes": _takes},
)
CONSIDERED = (
    Column("ACTION", "action"),
    Column("POLICY", "policy"),
    Column("MATCHES", "matches"),
    Column("DRY RUN", "dry_run"),
)

policy = lists.group(POLICIES)


@policy.command()
@click.argument("name")
@target_options
@output_option
@click.pass_obj
def show(context: Context, name: str) -> None:
    """One policy: state, rules, and the workloads it takes. NAME or NAMESPACE/NAME.

    \b
    Examples:
      ztctl policy show deny-all
      ztctl policy show shop/deny-all -o yaml
    """
    found = _ask(context, "/v1/policy", name=name)["policies"]
    if context.form is not Format.TABLE:
        click.echo(output.data(found, context.form))
        return
    for number, each in enumerate(found):
        click.echo("\n" if number else "", nl=False)
        facts = {key: value for key, value in each.items() if key != "definition"}
        click.echo(output.facts({**facts, "takes": _takes(each)}))
        rules = (each.get("definition") or {}).get("rules")
        if rules:
            click.echo(yaml.safe_dump({"rules": rules}, sort_keys=False).rstrip())


@policy.command()
@click.option("--from", "source", required=True, metavar="POD", help="Who connects.")
@click.option("--to", "target", required=True, metavar="POD:PORT", help="To whom.")
@click.option("-6", "--ipv6", is_flag=True, help="By the pods' IPv6 addresses.")
@target_options
@output_option
@click.pass_context
def test(ctx: click.Context, *, source: str, target: str, ipv6: bool) -> None:
    """What would become of a connection, which rule decides, and why. Nothing is sent.

    A POD is NAME, NAMESPACE/NAME, the name of its owner, or an address. Ends with 1 when the
    connection would be denied.

    \b
    Examples:
      ztctl policy test --from client --to my-app:80
      ztctl policy test --from 203.0.113.7 --to shop/db:5432 -o json
    """
    context: Context = ctx.obj
    question = {"from": source, "to": target, **({"family": "6"} if ipv6 else {})}
    answer = _ask(context, "/v1/policy/test", **question)
    if context.form is Format.TABLE:
        click.echo(_told(answer))
    else:
        click.echo(output.data(answer, context.form))
    if not answer["allowed"]:
        ctx.exit(FAILED)


@policy.command()
@click.argument("line", default="-")
@target_options
@output_option
@click.pass_obj
def explain(context: Context, line: str) -> None:
    """Why a connection was denied, from its LINE in a proxy's or the agent's log.

    Reads standard input when LINE is `-` or absent; of several lines the last denial counts. A
    client's own line (`answered 401`) does as well. Tells also what would be decided now.

    \b
    Examples:
      grep denied /var/log/ztunnel.log | ztctl policy explain
      ztctl policy explain "$(tail -1 proxy.log)"
    """
    text = sys.stdin.read() if line == "-" else line
    denial = _denial(text)
    asked = _asked(denial)
    now = _ask(context, "/v1/policy/test", **asked)
    name = denial.get("policy", "").partition(" ")[2]
    rules = _rules_of(context, name) if name else None
    facts = {
        "denied": {
            "at": denial.get("timestamp", ""),
            "from": _who(denial, "src"),
            "to": _who(denial, "dst"),
            "policy": denial.get("policy", ""),
            "rule": denial.get("rule", ""),
            "reason": denial.get("error", ""),
        },
        "policy_now": rules,
        "now": now,
        "to_allow": _to_allow(now, asked),
    }
    if context.form is not Format.TABLE:
        click.echo(output.data(facts, context.form))
        return
    click.echo(output.facts({"denied": facts["denied"]}))
    if rules:
        click.echo(f"\nThe policy, as it is now ({rules['state']}):")
        click.echo(yaml.safe_dump(rules["definition"], sort_keys=False).rstrip())
    elif name:
        click.echo("\nThe policy is not there any more.")
    click.echo(f"\nThe same connection now:\n{_told(now)}")
    if facts["to_allow"]:
        click.echo(f"\nTo allow it: {facts['to_allow']}")


def _ask(context: Context, path: str, **query: str) -> Any:
    """The answer of the first agent that gives one: all know the same policies."""
    problems = []
    for each in context.installations():
        try:
            answer = admin_client.get(each.run_dir, f"{path}?{urlencode(query)}")
        except CommandError as error:
            problems.append(f"{each.node}: {error.message}")
            continue
        if "error" in answer:
            raise CommandError(answer["error"])
        return answer
    raise NotReachableError("; ".join(problems))


def _told(answer: Row) -> str:
    """A decision for people."""
    source, target = answer["from"], answer["to"]
    facts = {
        "decision": "allowed" if answer["allowed"] else "DENIED",
        "reason": answer["reason"],
        "from": f"{source['workload'] or 'nobody known'} {source['address']}",
        "as": source["identity"] or "nobody: it proves no identity",
        "to": f"{target['workload'] or 'nobody known'} {target['address']} port {target['port']}",
        "path": answer["path"],
    }
    if answer.get("mtls"):
        facts["mtls"] = " ".join(filter(None, answer["mtls"].values()))
    if answer.get("dry_run"):
        facts["in dry run"] = answer["dry_run"]
    text = output.facts(facts)
    if answer.get("considered"):
        text += "\n\n" + output.table(CONSIDERED, answer["considered"])
    return text


def _denial(text: str) -> dict[str, str]:
    """The last denial among lines."""
    found = []
    for line in filter(str.strip, text.splitlines()):
        try:
            fields = access_log_parser.parse(line)
        except access_log_parser.LineError:
            continue
        if fields.get("response_flags") == "DENY" or "401" in fields.get("error", ""):
            found.append(fields)
    if not found:
        raise CommandError(
            "no denial among what was given: looked for response_flags=DENY, or a client's "
            "`answered 401`; take the line from the log of the destination's node"
        )
    return found[-1]


def _asked(denial: Row) -> dict[str, str]:
    """The question that the denied connection was."""
    target = denial.get("dst.addr", "")
    if target.endswith(f":{HBONE}"):  # a client's line: the app's address is the tunnel's authority
        target = denial.get("dst.hbone_addr", "")
    source = denial.get("src.addr", "").rpartition(":")[0].strip("[]")
    if not source or not target:
        raise CommandError("the line has no src.addr or no dst.addr; give the whole line")
    return {"from": source, "to": target, "identity": denial.get("src.identity", "")}


def _rules_of(context: Context, name: str) -> Any:
    try:
        found: list[Row] = _ask(context, "/v1/policy", name=name)["policies"]
    except NotReachableError:
        raise
    except CommandError:
        return None
    return found[0]


def _who(denial: Row, end: str) -> str:
    workload = denial.get(f"{end}.workload", "")
    place = f"{denial.get(f'{end}.namespace', '')}/{workload} " if workload else ""
    identity = denial.get(f"{end}.identity") or "no identity"
    return f"{place}{denial.get(f'{end}.addr', '')} ({identity})"


def _to_allow(now: Row, asked: Row) -> str:
    """What one would change; empty when it is allowed now."""
    if now["allowed"]:
        return ""
    if now["cause"].startswith("plaintext"):
        return "enrol the client, or make the port PERMISSIVE by portLevelMtls"
    if now.get("rule"):
        return f"change {now['rule']} of {now['policy']}, or what selects the workload there"
    principal = asked["identity"].removeprefix("spiffe://")
    who = {"principals": [principal]} if principal else {"ipBlocks": [asked["from"]]}
    rule = {"from": [{"source": who}], "to": [{"operation": {"ports": [str(now["to"]["port"])]}}]}
    dumped = yaml.safe_dump([rule], sort_keys=False, default_flow_style=True, width=1000).strip()
    return f"add to an ALLOW policy of that namespace: rules: {dumped}"
