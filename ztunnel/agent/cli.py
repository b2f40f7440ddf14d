# SPDX-License-Identifier: Apache-2.0
"""`ztunnel agent`: the privileged process of a node, from the command line."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import click
import structlog

from ztunnel.agent.config import Options, SameNode
from ztunnel.kube.client.access import Access
from ztunnel.kube.constants import NAMESPACE
from ztunnel.mesh.model import DEFAULT_ROOT_NAMESPACE, DEFAULT_TRUST_DOMAIN
from ztunnel.mesh.selectors import Selector, SelectorError, parse
from ztunnel.telemetry.logs import LOG_FORMATS, configure_logs

_DNS_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
OUTBOUND = ("ALLOW_ANY", "REGISTRY_ONLY")  # Istio's outboundTrafficPolicy.mode
_MAX_NAME = 253  # characters, RFC 1123


def _dns_name(_: click.Context, option: click.Parameter, value: str) -> str:
    if len(value) > _MAX_NAME or not _DNS_NAME.fullmatch(value):
        raise click.BadParameter(f"{value!r} is no DNS name in lower case")
    return value


def _cgroup2(_: click.Context, option: click.Parameter, value: Path | None) -> Path | None:
    if value is not None and not (value / "cgroup.procs").is_file():
        raise click.BadParameter(f"{value} is no cgroup v2 directory; `ztctl check` tells the root")
    return value


def _cri_socket(_: click.Context, option: click.Parameter, value: str) -> str:
    if value not in ("auto", "none") and not Path(value).is_absolute():
        raise click.BadParameter(f"{value!r} is neither auto, none, nor an absolute path")
    return value


def _selectors(_: click.Context, option: click.Parameter, value: str) -> tuple[Selector, ...]:
    try:
        return parse(value)
    except SelectorError as error:
        raise click.BadParameter(str(error)) from error


def _only_one(sources: dict[str, object]) -> None:
    given = [option for option, value in sources.items() if value]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise click.UsageError(f"give one of {', '.join(sources)}: where the cluster is; {found}")


@click.command("agent")
@click.option("--node", required=True, callback=_dns_name, help="This node's name in the objects.")
@click.option(
    "--in-cluster",
    is_flag=True,
    help="Watch the API server of the cluster that the agent runs in, by its ServiceAccount.",
)
@click.option(
    "--kubeconfig",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Watch the API server that this file leads to.",
)
@click.option("--context", help="The kubeconfig's context.  [default: its current one]")
@click.option(
    "--manifests",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Watch a directory of Kubernetes objects instead of an API server.",
)
@click.option(
    "--ca-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="CA in the form of Istio's cacerts; made there when there is none.  "
    "[default: ask the cluster's signer]",
)
@click.option(
    "--namespace",
    envvar="POD_NAMESPACE",
    default=NAMESPACE,
    show_default=True,
    callback=_dns_name,
    help="The mesh's own, where the signer publishes the roots.",
)
@click.option(
    "--pod",
    envvar="POD_NAME",
    default="",
    help="This agent's own pod in there. The admin API is then served on a port of loopback too, "
    "for `ztctl --transport port-forward`: by TLS, to who shows a token of ztunnel-admin.",
)
@click.option(
    "--cgroup",
    envvar="ZTUNNEL_CGROUP",  # of a node that shares its kernel with others, as kind's do
    type=click.Path(path_type=Path, file_okay=False),
    callback=_cgroup2,
    help="Where to attach, above all pods.  [default: the cgroup v2 root]",
)
@click.option(
    "--cri-socket",
    default=Options.cri_socket,
    show_default=True,
    callback=_cri_socket,
    metavar="auto|none|PATH",
    help="The container runtime's, which tells where pods are; without it they are looked for by "
    "cgroup.",
)
@click.option(
    "--pin-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/sys/fs/bpf/ztunnel"),
    show_default=True,
    help="Where programs, maps and links are pinned.",
)
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/run/ztunnel"),
    show_default=True,
    help="Where the agent's sockets are.",
)
@click.option(
    "--trust-domain",
    default=DEFAULT_TRUST_DOMAIN,
    show_default=True,
    callback=_dns_name,
    help="Of the SPIFFE ids.",
)
@click.option(
    "--root-namespace",
    default=DEFAULT_ROOT_NAMESPACE,
    show_default=True,
    callback=_dns_name,
    help="Whose policies are in force in the whole mesh.",
)
@click.option(
    "--cert-ttl",
    type=click.IntRange(2, 10 * 365 * 86400),
    default=86400,
    show_default=True,
    help="Seconds a workload certificate is valid; it is renewed at half of that.",
)
@click.option(
    "--proxy-uid",
    type=click.IntRange(min=1),
    default=1337,
    show_default=True,
    help="The user the proxy runs as.",
)
@click.option(
    "--same-node",
    type=click.Choice([mode.value for mode in SameNode]),
    default=SameNode.DIRECT.value,
    show_default=True,
    help="Connections between pods of this node: authorised once and then without the proxy, "
    "or always by mTLS through it.",
)
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    default=Options.metrics_port,
    show_default=True,
    help="TCP port of /metrics; 0 for none.",
)
@click.option(
    "--health-port",
    type=click.IntRange(0, 65535),
    default=Options.health_port,
    show_default=True,
    help="TCP port of /healthz/ready and /healthz/live; 0 for none.",
)
@click.option(
    "--listen",
    default=Options.listen,
    help="Address of these two ports.  [default: all of the node]",
)
@click.option(
    "--metrics-max-series",
    type=click.IntRange(min=1),
    default=Options.most_series,
    show_default=True,
    help="Series a metric of connections may have; what exceeds them counts as `overflow`.",
)
@click.option(
    "--metrics-retire-after",
    type=click.FloatRange(min=0),
    default=Options.retire_after,
    show_default=True,
    help="Seconds after which series of a workload that is gone are forgotten.",
)
@click.option(
    "--bpf-stats/--no-bpf-stats",
    default=Options.bpf_stats,
    show_default=True,
    help="Let the kernel time the BPF programs: all of the machine's, and each run costs more.",
)
@click.option(
    "--discovery-selectors",
    "discovery",
    default="[]",
    callback=_selectors,
    help="Istio's discoverySelectors as JSON: of other namespaces the mesh knows nothing.  "
    "[default: all]",
)
@click.option(
    "--outbound-traffic-policy",
    "outbound",
    type=click.Choice(OUTBOUND),
    default=OUTBOUND[0],
    show_default=True,
    help="REGISTRY_ONLY: apps reach services and workloads, and nothing else.",
)
@click.option("--log-format", type=click.Choice(LOG_FORMATS), default="console", show_default=True)
def command(
    *,
    node: str,
    in_cluster: bool,
    kubeconfig: Path | None,
    context: str | None,
    manifests: Path | None,
    ca_dir: Path | None,
    namespace: str,
    pod: str,
    cgroup: Path | None,
    cri_socket: str,
    pin_dir: Path,
    run_dir: Path,
    trust_domain: str,
    root_namespace: str,
    cert_ttl: int,
    proxy_uid: int,
    same_node: str,
    metrics_port: int,
    health_port: int,
    listen: str,
    metrics_max_series: int,
    metrics_retire_after: float,
    bpf_stats: bool,
    discovery: tuple[Selector, ...],
    outbound: str,
    log_format: str,
) -> None:
    """Capture this node's enrolled pods and serve the proxy. Needs root.

    What the cluster has comes from one of --in-cluster, --kubeconfig and --manifests.

    SIGTERM ends the agent and nothing else: traffic goes on with what the kernel and the proxy
    hold, and the next agent takes over. `ztctl uninstall` removes the data path.
    """
    _only_one({"--in-cluster": in_cluster, "--kubeconfig": kubeconfig, "--manifests": manifests})
    if context and not kubeconfig:
        raise click.UsageError("--context chooses within a --kubeconfig; give that too")
    if manifests and not ca_dir:
        raise click.UsageError("--manifests needs a --ca-dir: a directory has no signer to ask")
    configure_logs(log_format)
    structlog.contextvars.bind_contextvars(node=node)
    options = Options(
        node=node,
        manifests=manifests,
        cgroup=cgroup,
        cri_socket=cri_socket,
        pin_dir=pin_dir,
        run_dir=run_dir,
        ca_dir=ca_dir,
        trust_domain=trust_domain,
        root_namespace=root_namespace,
        certificate_ttl=timedelta(seconds=cert_ttl),
        proxy_uid=proxy_uid,
        same_node=SameNode(same_node),
        metrics_port=metrics_port,
        health_port=health_port,
        listen=listen,
        most_series=metrics_max_series,
        retire_after=metrics_retire_after,
        bpf_stats=bpf_stats,
        access=None if manifests else Access(kubeconfig, context),
        namespace=namespace,
        pod=pod,
        discovery=discovery,
        registry_only=outbound == OUTBOUND[1],
    )
    from ztunnel.agent.agent import StartupError, main  # noqa: PLC0415  --help needs none of it

    try:
        main(options)
    except StartupError as error:
        raise click.ClickException(str(error)) from error
