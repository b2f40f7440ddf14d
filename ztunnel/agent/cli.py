# SPDX-License-Identifier: Apache-2.0
"""`ztunnel agent`: the command line of the privileged process of a node."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import TypedDict, Unpack

import click
import structlog

from ztunnel.agent.config import Options, SameNode
from ztunnel.kube.client.access import Access
from ztunnel.kube.constants import NAMESPACE
from ztunnel.mesh.model import DEFAULT_ROOT_NAMESPACE, DEFAULT_TRUST_DOMAIN
from ztunnel.mesh.selectors import Selector, SelectorError, parse
from ztunnel.telemetry import log_writer
from ztunnel.telemetry.logs import LOG_FORMATS, configure_logs

_DNS_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
OUTBOUND = ("ALLOW_ANY", "REGISTRY_ONLY")  # Istio's outboundTrafficPolicy.mode
_MAX_NAME_CHARS = 253  # RFC 1123


def _dns_name(_: click.Context, option: click.Parameter, value: str) -> str:
    if len(value) > _MAX_NAME_CHARS or not _DNS_NAME.fullmatch(value):
        raise click.BadParameter(f"{value!r} is not a DNS name in lower case")
    return value


def _cgroup2(_: click.Context, option: click.Parameter, value: Path | None) -> Path | None:
    if value is not None and not (value / "cgroup.procs").is_file():
        raise click.BadParameter(
            f"{value} is not a cgroup v2 directory; hint: `ztctl check` prints the root"
        )
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
        raise click.UsageError(
            f"exactly one configuration source is required: {', '.join(sources)}; found {found}"
        )


class _Flags(TypedDict):
    """The values of the options, by parameter name."""

    node: str
    in_cluster: bool
    kubeconfig: Path | None
    context: str | None
    manifests: Path | None
    ca_dir: Path | None
    namespace: str
    pod_name: str
    cgroup: Path | None
    cri_socket: str
    pin_dir: Path
    run_dir: Path
    trust_domain: str
    root_namespace: str
    cert_ttl: int
    proxy_uid: int
    gateway_uid: int
    same_node: str
    metrics_port: int
    health_port: int
    metrics_bind_address: str
    metrics_max_series: int
    metrics_series_ttl: float
    bpf_stats: bool
    access_log_rate: int
    discovery: tuple[Selector, ...]
    outbound: str
    log_format: str


@click.command("agent")
@click.option("--node", required=True, callback=_dns_name, help="Name of this node's Node object.")
@click.option(
    "--in-cluster",
    is_flag=True,
    help="Watch the API server of the agent's own cluster, with its ServiceAccount.",
)
@click.option(
    "--kubeconfig",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Watch the API server that this file configures.",
)
@click.option("--context", help="Context of the kubeconfig.  [default: its current context]")
@click.option(
    "--manifests",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Watch a directory of Kubernetes objects instead of an API server.",
)
@click.option(
    "--ca-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory with a CA in the layout of Istio's cacerts Secret; created if it is empty.  "
    "[default: request certificates from the controller by CertificateSigningRequest]",
)
@click.option(
    "--namespace",
    envvar="POD_NAMESPACE",
    default=NAMESPACE,
    show_default=True,
    callback=_dns_name,
    help="Namespace of the mesh, in which the controller publishes the root certificates.",
)
@click.option(
    "--pod-name",
    envvar="POD_NAME",
    default="",
    help="Name of the agent's pod in --namespace. Enables the admin API on a TLS port of the "
    "loopback interface, for `ztctl --transport port-forward`; clients need a token of the "
    "ServiceAccount ztunnel-admin.",
)
@click.option(
    "--cgroup",
    envvar="ZTUNNEL_CGROUP",  # for nodes that share a kernel, such as those of kind
    type=click.Path(path_type=Path, file_okay=False),
    callback=_cgroup2,
    help="Cgroup to attach the BPF programs to; it must contain all pods.  "
    "[default: the cgroup v2 root]",
)
@click.option(
    "--cri-socket",
    default=Options.cri_socket,
    show_default=True,
    callback=_cri_socket,
    metavar="auto|none|PATH",
    help="CRI socket used to locate pods. With `none`, or if the runtime does not respond, the "
    "agent discovers pods by cgroup.",
)
@click.option(
    "--pin-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/sys/fs/bpf/ztunnel"),
    show_default=True,
    help="bpffs directory for the pinned programs, maps and links.",
)
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/run/ztunnel"),
    show_default=True,
    help="Directory for the agent's sockets.",
)
@click.option(
    "--trust-domain",
    default=DEFAULT_TRUST_DOMAIN,
    show_default=True,
    callback=_dns_name,
    help="Trust domain used in SPIFFE IDs.",
)
@click.option(
    "--root-namespace",
    default=DEFAULT_ROOT_NAMESPACE,
    show_default=True,
    callback=_dns_name,
    help="Root namespace: its policies apply to the whole mesh.",
)
@click.option(
    "--cert-ttl",
    type=click.IntRange(2, 10 * 365 * 86400),
    default=86400,
    show_default=True,
    help="Validity of a workload certificate in seconds; it is renewed after half of it.",
)
@click.option(
    "--proxy-uid",
    type=click.IntRange(min=1),
    default=15008,
    show_default=True,
    help="User ID that the proxy runs as.",
)
@click.option(
    "--gateway-uid",
    type=click.IntRange(min=1),
    default=Options.gateway_uid,
    show_default=True,
    help="User ID that the gateway process runs as.",
)
@click.option(
    "--same-node",
    type=click.Choice([mode.value for mode in SameNode]),
    default=SameNode.DIRECT.value,
    show_default=True,
    help="Connections between pods of this node. `direct`: the proxy authorizes a pair once, then "
    "the kernel connects it without the proxy, and the proxy reaches a waypoint's pod without a "
    "tunnel. `encrypt`: always mTLS through the proxy.",
)
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    default=Options.metrics_port,
    show_default=True,
    help="TCP port of /metrics; 0 disables it.",
)
@click.option(
    "--health-port",
    type=click.IntRange(0, 65535),
    default=Options.health_port,
    show_default=True,
    help="TCP port of /healthz/ready and /healthz/live; 0 disables it.",
)
@click.option(
    "--metrics-bind-address",
    default=Options.metrics_bind_address,
    help="IP address of the metrics and health ports.  [default: all addresses of the node]",
)
@click.option(
    "--metrics-max-series",
    type=click.IntRange(min=1),
    default=Options.max_series,
    show_default=True,
    help="Maximum number of series of a traffic metric; excess series are aggregated into one "
    "series with all labels set to `overflow`.",
)
@click.option(
    "--metrics-series-ttl",
    type=click.FloatRange(min=0),
    default=Options.series_ttl_s,
    show_default=True,
    help="Seconds until the series of a deleted workload expire.",
)
@click.option(
    "--bpf-stats/--no-bpf-stats",
    default=Options.bpf_stats,
    show_default=True,
    help="Measure the run time of BPF programs. This affects all programs of the machine and "
    "makes each run slower.",
)
@click.option(
    "--discovery-selectors",
    "discovery",
    default="[]",
    callback=_selectors,
    help="Istio's discoverySelectors as JSON; the mesh ignores other namespaces.  [default: all]",
)
@click.option(
    "--outbound-traffic-policy",
    "outbound",
    type=click.Choice(OUTBOUND),
    default=OUTBOUND[0],
    show_default=True,
    help="Istio's outboundTrafficPolicy. REGISTRY_ONLY: apps reach only services and workloads.",
)
@click.option(
    "--access-log-rate",
    type=click.IntRange(min=0),
    default=Options.access_log_rate,
    show_default=True,
    help="Maximum number of access log lines per second of each process (agent and every worker), "
    "for successful and failed connections separately, after a burst of ten seconds' worth; 0 "
    "disables the limit.",
)
@click.option("--log-format", type=click.Choice(LOG_FORMATS), default="console", show_default=True)
def command(**flags: Unpack[_Flags]) -> None:
    """Capture this node's enrolled pods and serve the proxy. Needs root.

    The configuration comes from one of --in-cluster, --kubeconfig and --manifests.

    SIGTERM stops only the agent: traffic continues with the state of the kernel and the proxy,
    and the next agent takes over. `ztctl uninstall` removes the data path.
    """
    _check(flags)
    configure_logs(flags["log_format"])
    structlog.contextvars.bind_contextvars(node=flags["node"])
    from ztunnel.agent.agent import StartupError, main  # noqa: PLC0415  --help needs none of it

    try:
        main(_options(flags))
    except StartupError as error:
        log_writer.flush()  # the error is to be the last line
        raise click.ClickException(str(error)) from error


def _check(flags: _Flags) -> None:
    """Check combinations of options. Raises click.UsageError."""
    _only_one(
        {
            "--in-cluster": flags["in_cluster"],
            "--kubeconfig": flags["kubeconfig"],
            "--manifests": flags["manifests"],
        }
    )
    if flags["context"] and not flags["kubeconfig"]:
        raise click.UsageError("--context selects a context of --kubeconfig, which is missing")
    if flags["manifests"] and not flags["ca_dir"]:
        raise click.UsageError(
            "--manifests needs a --ca-dir: without an API server there is no controller to sign"
        )


def _options(flags: _Flags) -> Options:
    manifests = flags["manifests"]
    return Options(
        node=flags["node"],
        manifests=manifests,
        cgroup=flags["cgroup"],
        cri_socket=flags["cri_socket"],
        pin_dir=flags["pin_dir"],
        run_dir=flags["run_dir"],
        ca_dir=flags["ca_dir"],
        trust_domain=flags["trust_domain"],
        root_namespace=flags["root_namespace"],
        certificate_ttl=timedelta(seconds=flags["cert_ttl"]),
        proxy_uid=flags["proxy_uid"],
        gateway_uid=flags["gateway_uid"],
        same_node=SameNode(flags["same_node"]),
        metrics_port=flags["metrics_port"],
        health_port=flags["health_port"],
        metrics_bind_address=flags["metrics_bind_address"],
        max_series=flags["metrics_max_series"],
        series_ttl_s=flags["metrics_series_ttl"],
        bpf_stats=flags["bpf_stats"],
        access_log_rate=flags["access_log_rate"],
        access=None if manifests else Access(flags["kubeconfig"], flags["context"]),
        namespace=flags["namespace"],
        pod_name=flags["pod_name"],
        discovery=flags["discovery"],
        registry_only=flags["outbound"] == OUTBOUND[1],
    )
