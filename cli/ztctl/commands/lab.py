# SPDX-License-Identifier: Apache-2.0
"""`ztctl lab`: the embedded lab from a shell.

A thin skin over `ztunnel.lab.Lab`. `lab` is the command group.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from ztctl import output
from ztctl.context import Context, output_option
from ztctl.errors import FAILED, CommandError
from ztctl.output import Column, Format
from ztunnel.lab import Lab, LabError
from ztunnel.lab.cluster.objects import key_of, read_manifests

COMPONENT = click.Choice(["agent", "proxy", "dns"])
NODES = (Column("NODE", "name"), Column("ADDRESSES", "addresses"), Column("NETNS", "netns"))
PODS = (
    Column("NAMESPACE", "namespace"),
    Column("POD", "name"),
    Column("NODE", "node"),
    Column("READY", "ready"),
    Column("STATUS", "status"),
    Column("MODE", "dataplaneMode"),
    Column("ADDRESSES", "addresses"),
)
SERVICES = (
    Column("NAMESPACE", "namespace"),
    Column("SERVICE", "name"),
    Column("CLUSTER-IPS", "clusterIPs"),
    Column("PORTS", "ports"),
    Column("ENDPOINTS", "endpoints"),
)
DEFAULT_NAME = "lab"

Command = TypeVar("Command", bound=Callable[..., Any])


def _chosen_name(ctx: click.Context, _: click.Parameter, value: str | None) -> str:
    """`lab up --name x` and `ztctl --lab x lab up` mean the same."""
    return value or ctx.ensure_object(Context).selection.lab or DEFAULT_NAME


def _name_option(command: Command) -> Command:
    return click.option(
        "--name",
        envvar="ZTCTL_LAB",
        show_envvar=True,
        callback=_chosen_name,
        help=f"Which lab.  [default: {DEFAULT_NAME}]",
    )(command)


def _namespace_option(command: Command) -> Command:
    return click.option(
        "-n", "--namespace", default="default", show_default=True, help="The object's namespace."
    )(command)


def _files_option(*, required: bool) -> Callable[[Command], Command]:
    return click.option(
        "-f",
        "--filename",
        "files",
        multiple=True,
        required=required,
        type=click.Path(exists=True, path_type=Path),
        help="A manifest, or a directory of them. May be repeated.",
    )


@contextmanager
def _plain_errors() -> Iterator[None]:
    """A LabError is for people: its message, no traceback."""
    try:
        yield
    except LabError as error:
        raise CommandError(str(error)) from error


def _progress(line: str) -> None:
    click.echo(line, err=True)


def _report(problems: Sequence[str]) -> None:
    """Say what is still wrong and end with 1, or do nothing."""
    for problem in problems:
        click.echo(f"problem: {problem}", err=True)
    if problems:
        sys.exit(FAILED)


@click.group()
def lab() -> None:
    """A small cluster on this machine, without Kubernetes.

    Nodes and pods are network namespaces, containers are programs of this machine; each node runs
    the real agent and proxy. Needs root.

    \b
    Examples:
      ztctl lab up                                   # two nodes and the demo: client, my-app
      ztctl lab exec client -- curl -s http://my-app
      ztctl lab status
      ztctl lab label ns default istio.io/dataplane-mode-    # leave the mesh
      ztctl lab down
    """


@lab.command()
@_files_option(required=False)
@_name_option
@click.option("--nodes", type=int, help="How many nodes.  [default: 2]")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Until all is ready.")
@click.option("--timeout", type=float, default=90.0, show_default=True, help="Seconds to wait.")
@click.option("--no-mesh", is_flag=True, hidden=True, help="Start no agent and no proxy.")
def up(
    *,
    files: tuple[Path, ...],
    name: str,
    nodes: int | None,
    wait: bool,
    timeout: float,
    no_mesh: bool,
) -> None:
    """Bring a lab up, or mend what is broken of it.

    Without -f a new lab gets the demo: the namespace default in the mesh, a deployment my-app
    with its service, and a pod client to run things from. Safe to repeat.

    \b
    Examples:
      ztctl lab up
      ztctl lab up -f manifests/ -f extra.yaml --nodes 3
      ztctl lab up --name second
    """
    with _plain_errors():
        mesh = False if no_mesh else None
        built = Lab(name, nodes=nodes, mesh=mesh, progress=_progress)
        problems = built.up(list(files) or None, wait=wait, timeout=timeout)
        _progress(f"lab {name} is up; see: ztctl lab status" + _name_hint(name))
        _report(problems)


@lab.command()
@_name_option
def down(name: str) -> None:
    """Remove a lab and every trace of it.

    Works after a crash of anything and with the state directory gone; safe to repeat.
    """
    with _plain_errors():
        removed = Lab(name).down()
        for line in removed:
            _progress(f"removed {line}")
        _progress(f"lab {name} is down" if removed else f"lab {name}: nothing to remove")


@lab.command()
@_name_option
@output_option
@click.pass_context
def status(ctx: click.Context, name: str) -> None:
    """Show nodes, pods and services."""
    with _plain_errors():
        found = Lab(name).status()
    form = ctx.ensure_object(Context).form
    click.echo("\n\n".join(_tables(found)) if form is Format.TABLE else output.data(found, form))


@lab.command(
    name="exec",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@_name_option
@_namespace_option
@click.option("-c", "--container", help="Which container; the first by default.")
@click.option("--node", help="Run in this node's network namespace instead of a pod.")
@click.option("--privileged", is_flag=True, help="With every capability, unlike the container.")
@click.argument("words", nargs=-1, required=True, metavar="[POD] [--] COMMAND...")
def exec_(
    *,
    name: str,
    namespace: str,
    container: str | None,
    node: str | None,
    privileged: bool,
    words: tuple[str, ...],
) -> None:
    """Run a command in a pod, as its container would; ends with the command's exit code.

    POD is a name or deploy/NAME.

    \b
    Examples:
      ztctl lab exec client -- curl -s http://my-app
      ztctl lab exec -n other deploy/web sh
      ztctl lab exec --node node1 -- ip route
    """
    with _plain_errors():
        built = Lab(name)
        if node:
            argv, env = built.node_argv(node, _command(words)), dict(os.environ)
        else:
            argv, env = built.exec_argv(
                words[0],
                _command(words[1:]),
                namespace=namespace,
                container=container,
                privileged=privileged,
            )
    os.execvpe(argv[0], argv, env)


@lab.command()
@_files_option(required=True)
@_name_option
@click.option("--wait/--no-wait", default=True, show_default=True, help="Until all is ready.")
@click.option("--timeout", type=float, default=90.0, show_default=True, help="Seconds to wait.")
def apply(files: tuple[Path, ...], name: str, wait: bool, timeout: float) -> None:
    """Apply manifests: create what is new, change what changed.

    Namespace, Pod, Deployment, Service, ServiceAccount and ConfigMap ztunnel-lab-images mean
    something to the lab; other kinds (policies) are stored for the agents as they are.
    """
    with _plain_errors():
        _report(Lab(name, progress=_progress).apply(*files, wait=wait, timeout=timeout))


@lab.command()
@_files_option(required=False)
@_name_option
@_namespace_option
@click.argument("kind", required=False)
@click.argument("names", nargs=-1, metavar="NAME...")
def delete(
    *,
    files: tuple[Path, ...],
    name: str,
    namespace: str,
    kind: str | None,
    names: tuple[str, ...],
) -> None:
    """Delete objects, by kind and name or as named in manifests.

    \b
    Examples:
      ztctl lab delete deploy my-app
      ztctl lab delete -f policy.yaml
    """
    if not files and not (kind and names):
        raise click.UsageError("say what to delete: KIND NAME, or -f FILE")
    with _plain_errors():
        built = Lab(name, progress=_progress)
        targets = [key_of(obj) for obj in read_manifests(files)]
        problems = [p for key in targets for p in built.delete(key.kind, key.name, key.namespace)]
        for each in names:
            problems += built.delete(str(kind), each, namespace)
        _report(problems)


@lab.command()
@_name_option
@_namespace_option
@click.argument("words", nargs=-1, required=True, metavar="[KIND] NAME KEY=VALUE|KEY-...")
def label(name: str, namespace: str, words: tuple[str, ...]) -> None:
    """Set (KEY=VALUE) or remove (KEY-) labels of a pod, a namespace or any stored object.

    Enrolment follows within a second; pods are not restarted. KIND is pod by default.

    \b
    Examples:
      ztctl lab label ns default istio.io/dataplane-mode=ambient
      ztctl lab label client istio.io/dataplane-mode=none
      ztctl lab label pod client istio.io/dataplane-mode-
    """
    targets = [word for word in words if "=" not in word and not word.endswith("-")]
    changes = [word for word in words if word not in targets]
    if not 1 <= len(targets) <= 2 or not changes:
        raise click.UsageError("expected [KIND] NAME and at least one KEY=VALUE or KEY-")
    kind = targets[0] if len(targets) == 2 else "pod"
    with _plain_errors():
        Lab(name).label(kind, targets[-1], dict(map(_label_change, changes)), namespace)
    _progress(f"{kind} {targets[-1]} labelled")


@lab.command()
@_name_option
@_namespace_option
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on.")
@click.option("--tail", "lines", type=int, default=100, show_default=True, help="Lines to show.")
@click.argument("target", metavar="NODE|POD")
@click.argument("component", required=False, metavar="[agent|proxy|dns|CONTAINER]")
def logs(
    *,
    name: str,
    namespace: str,
    follow: bool,
    lines: int,
    target: str,
    component: str | None,
) -> None:
    """Show the log of a node's component, or of a pod's container.

    \b
    Examples:
      ztctl lab logs node1 proxy -f
      ztctl lab logs deploy/my-app
    """
    with _plain_errors():
        paths = Lab(name).log_paths(target, component, namespace)
    argv = ["tail", f"--lines={lines}", *(["--follow=name"] if follow else []), *map(str, paths)]
    os.execvp(argv[0], argv)


@lab.command()
@_name_option
@click.option("--kill", is_flag=True, help="By SIGKILL, as a crash would.")
@click.argument("node")
@click.argument("component", type=COMPONENT)
def restart(name: str, kill: bool, node: str, component: str) -> None:
    """Stop a node's component, start it again and wait until it serves."""
    with _plain_errors():
        Lab(name, progress=_progress).restart(node, component, kill=kill)


@lab.command()
@_name_option
@click.argument("node")
@click.argument("component", type=COMPONENT)
def kill(name: str, node: str, component: str) -> None:
    """SIGKILL a node's component and leave it dead (see start)."""
    with _plain_errors():
        Lab(name).kill(node, component)
    _progress(f"{node}: {component} killed")


@lab.command()
@_name_option
@click.argument("node")
@click.argument("component", type=COMPONENT)
def start(name: str, node: str, component: str) -> None:
    """Start a node's component that is not running, and wait until it serves."""
    with _plain_errors():
        Lab(name, progress=_progress).start(node, component)


def _command(words: Sequence[str]) -> list[str]:
    """The words after POD, without the `--` that may set them apart."""
    command = list(words[1:] if words[:1] == ("--",) else words)
    if not command:
        raise click.UsageError("say what to run, for instance: ztctl lab exec client -- ip address")
    return command


def _label_change(word: str) -> tuple[str, str | None]:
    key, equals, value = word.partition("=")
    return (key, value) if equals else (word.removesuffix("-"), None)


def _name_hint(name: str) -> str:
    return "" if name == DEFAULT_NAME else f" --name {name}"


def _tables(found: dict[str, Any]) -> Iterator[str]:
    kinds = list(found["nodes"][0]["components"])
    columns = (*NODES, *(Column(kind.upper(), f"health.{kind}") for kind in kinds))
    nodes = [{**node, "health": _health(node["components"])} for node in found["nodes"]]
    yield output.table(columns, nodes)
    yield output.table(PODS, found["pods"])
    yield output.table(SERVICES, found["services"])


def _health(components: dict[str, Any]) -> dict[str, str]:
    """What a table tells of each component: dead, or its pid and whether it serves."""
    said = {}
    for kind, component in components.items():
        word = "ready" if component["ready"] else "unready"
        said[kind] = f"{word}({component['pid']})" if component["pid"] else "dead"
    return said
