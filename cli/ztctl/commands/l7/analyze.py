# SPDX-License-Identifier: Apache-2.0
"""`ztctl analyze`: the resources that are ignored, or only partly honoured, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import msgspec

from ztctl import admin_client
from ztctl.context import Context, output_option, target_options
from ztctl.errors import EXIT_FAILED, CommandError, QuestionError
from ztctl.l7_inputs import load_inputs
from ztctl.manifest_inputs import load_files, load_mesh_config
from ztctl.node_policies import node_problems
from ztctl.output import Column, Format
from ztunnel.l7.analysis import analyze as find_problems
from ztunnel.l7.inputs import Inputs, Settings
from ztunnel.l7.problems import Problem, Severity
from ztunnel.l7.security.custom import PROVIDER_NOT_FOUND
from ztunnel.mesh.model import DEFAULT_ROOT_NAMESPACE, DEFAULT_TRUST_DOMAIN
from ztunnel.mesh.policy.model import PeerAuthentication

COLUMNS = (
    Column("SEVERITY", "severity"),
    Column("KIND", "kind"),
    Column("NAMESPACE", "namespace"),
    Column("NAME", "name"),
    Column("FIELD", "field"),
    Column("MESSAGE", "message"),
)
_RANK = {Severity.ERROR: 0, Severity.WARNING: 1, Severity.IGNORED: 2}
# Policies of these kinds are analyzed as objects: what the agent reports about them is the same.
_ANALYZED = ("AuthorizationPolicy", "RequestAuthentication")


@click.command()
@click.argument("files", nargs=-1, metavar="[FILE]...")
@click.option("-n", "--namespace", help="Only resources of this namespace.")
@click.option(
    "-A", "--all-namespaces", is_flag=True, help="Resources of all namespaces; the default."
)
@click.option(
    "--failure-threshold",
    type=click.Choice([each.value for each in Severity]),
    default=Severity.ERROR.value,
    show_default=True,
    help="Least severity that makes the command exit with 1.",
)
@click.option(
    "--mesh-config",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="File with Istio's MeshConfig: the external authorizers of CUSTOM policies.",
)
@click.option("--trust-domain", default=DEFAULT_TRUST_DOMAIN, show_default=True, help="With files.")
@click.option(
    "--root-namespace", default=DEFAULT_ROOT_NAMESPACE, show_default=True, help="With files."
)
@target_options
@output_option
@click.pass_context
def analyze(
    ctx: click.Context,
    *,
    files: tuple[str, ...],
    namespace: str | None,
    all_namespaces: bool,
    failure_threshold: str,
    mesh_config: Path | None,
    trust_domain: str,
    root_namespace: str,
) -> None:
    """Name the resources that are ignored or only partly honoured, and why.

    Reads manifest FILES (directories, or - for standard input), or the resources of a running mesh
    from one of its agents.

    \b
    Severities:
      error    the resource, or a part of it, is replaced by one that denies
      warning  enforced differently from what is written
      ignored  no effect
    Exits with 0 if no problem reaches --failure-threshold, 1 if one does, 2 for an error, 3 if no
    agent is reachable.

    \b
    Examples:
      ztctl analyze manifests/
      ztctl analyze -n shop --failure-threshold warning
      kubectl get gateway,httproute -A -o yaml | ztctl analyze -
    """
    context: Context = ctx.obj
    if namespace and all_namespaces:
        raise QuestionError("-n and -A exclude each other; hint: leave out one of them")
    settings = Settings(trust_domain=trust_domain, root_namespace=root_namespace)
    try:
        problems = _problems(context, files, settings, mesh_config)
    except CommandError as error:
        if error.exit_code != EXIT_FAILED:
            raise
        raise QuestionError(error.message) from error
    problems = sorted(
        {each for each in problems if not namespace or each.namespace == namespace},
        key=lambda each: (_RANK[each.severity], each),
    )
    if problems or context.output_format is not Format.TABLE:
        context.print_rows([msgspec.to_builtins(each) for each in problems], COLUMNS)
    else:
        click.echo("No problem found.")
    threshold = _RANK[Severity(failure_threshold)]
    if any(_RANK[each.severity] <= threshold for each in problems):
        ctx.exit(EXIT_FAILED)


def _problems(
    context: Context, files: tuple[str, ...], settings: Settings, mesh_config: Path | None
) -> list[Problem]:
    """All problems of files, or of a running mesh. Raises CommandError."""
    if files:
        found = load_files(files, settings)
        inputs, others = found.inputs, [*_from_errors(found.errors), *_peers(found.inputs)]
    else:
        inputs, others = load_inputs(context), list(_from_agent(context))
    config = replace(inputs.settings, mesh_config=load_mesh_config(mesh_config))
    problems = [*find_problems(Inputs(inputs.store, inputs.mesh, config), node_problems), *others]
    return problems if mesh_config is not None else list(map(_without_mesh_config, problems))


def _without_mesh_config(problem: Problem) -> Problem:
    """A provider may exist: what is not known is not an error."""
    if problem.reason != PROVIDER_NOT_FOUND:
        return problem
    return msgspec.structs.replace(
        problem,
        message="not checked: external authorizers are not known here; hint: --mesh-config FILE "
        "with the text of the ConfigMap ztunnel-mesh-config",
        severity=Severity.WARNING,
    )


def _from_errors(errors: dict[str, str]) -> Iterator[Problem]:
    """Objects that the view of the mesh rejects, by `kind namespace/name`."""
    for key, message in errors.items():
        kind, _, place = key.partition(" ")
        namespace, _, name = place.rpartition("/")
        if kind not in _ANALYZED:
            yield Problem(
                kind=kind,
                namespace=namespace,
                name=name,
                message=message,
                severity=Severity.ERROR,
                reason="Invalid",
            )


def _peers(inputs: Inputs) -> Iterator[Problem]:
    for policy in inputs.mesh.policies:
        if isinstance(policy, PeerAuthentication):
            for warning in policy.warnings:
                yield _peer_problem(policy.namespace, policy.name, warning)


def _from_agent(context: Context) -> Iterator[Problem]:
    """What the first reachable agent reports about other objects."""
    for target in context.targets():
        try:
            status = admin_client.get(target.run_dir, "/v1/status")
            policies = admin_client.get(target.run_dir, "/v1/policies")["policies"]
        except CommandError:
            continue
        yield from _from_errors(dict((status.get("source") or {}).get("errors") or {}))
        for row in policies:
            is_refused = row["state"] == "refused"  # which the status reports as an error
            if row["kind"] == "PeerAuthentication" and row["message"] and not is_refused:
                yield _peer_problem(row["namespace"], row["name"], row["message"])
        return


def _peer_problem(namespace: str, name: str, message: str) -> Problem:
    return Problem(
        kind="PeerAuthentication",
        namespace=namespace,
        name=name,
        message=message,
        severity=Severity.WARNING,
        reason="UnsupportedValue",
    )
