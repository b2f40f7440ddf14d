# SPDX-License-Identifier: Apache-2.0
"""`ztctl policy show`: one policy with its rules."""

from __future__ import annotations

import click
import yaml

from ztctl import output
from ztctl.commands.policy.query import query_any_agent, target_workloads
from ztctl.context import Context, output_option, target_options
from ztctl.output import Format


@click.command()
@click.argument("name")
@target_options
@output_option
@click.pass_obj
def show(context: Context, name: str) -> None:
    """Show a policy's state, rules and selected workloads. NAME is NAME or NAMESPACE/NAME.

    \b
    Examples:
      ztctl policy show deny-all
      ztctl policy show shop/deny-all -o yaml
    """
    policies = query_any_agent(context, "/v1/policy", name=name)["policies"]
    if context.output_format is not Format.TABLE:
        click.echo(output.render_data(policies, context.output_format))
        return
    for number, policy in enumerate(policies):
        click.echo("\n" if number else "", nl=False)
        fields = {key: value for key, value in policy.items() if key != "definition"}
        click.echo(output.render_fields({**fields, "targets": target_workloads(policy)}))
        rules = (policy.get("definition") or {}).get("rules")
        if rules:
            click.echo(yaml.safe_dump({"rules": rules}, sort_keys=False).rstrip())
