# SPDX-License-Identifier: Apache-2.0
"""The `ztunnel controller` command."""

from __future__ import annotations

import os
import signal
from datetime import timedelta
from pathlib import Path

import click

from ztunnel.kube.client.access import Access, AccessError
from ztunnel.kube.constants import AGENT_ACCOUNT, NAMESPACE
from ztunnel.l7.deployment.settings import ALL_NAMESPACES, PROXY_IMAGE, DeploymentSettings
from ztunnel.l7.inputs import Settings
from ztunnel.mesh.model import DEFAULT_ROOT_NAMESPACE, DEFAULT_TRUST_DOMAIN
from ztunnel.telemetry.logs import LOG_FORMATS, configure_logs


@click.command("controller")
@click.option(
    "--kubeconfig",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Kubeconfig of the API server.  [default: the pod's service account]",
)
@click.option("--context", help="Context of the kubeconfig.  [default: its current context]")
@click.option(
    "--namespace",
    envvar="POD_NAMESPACE",
    default=NAMESPACE,
    show_default=True,
    help="Namespace of the CA Secrets, the Lease, and the agents.",
)
@click.option(
    "--agent-account",
    default=AGENT_ACCOUNT,
    show_default=True,
    help="Service account of the agents. Requests from other accounts are denied.",
)
@click.option(
    "--identity",
    envvar="POD_NAME",
    default=lambda: f"{os.uname().nodename}-{os.getpid()}",
    help="Holder identity in the Lease.  [default: host name and PID]",
)
@click.option(
    "--trust-domain",
    default=DEFAULT_TRUST_DOMAIN,
    show_default=True,
    help="Trust domain used in SPIFFE IDs.",
)
@click.option(
    "--cert-ttl",
    type=click.IntRange(2, 10 * 365 * 86400),
    default=86400,
    show_default=True,
    help="Longest lifetime of a certificate, in seconds.",
)
@click.option(
    "--root-propagation-delay",
    type=click.FloatRange(0, 3600),
    default=10.0,
    show_default=True,
    help="Seconds between publishing the root of a new CA and signing with it.",
)
@click.option(
    "--lease-duration",
    type=click.IntRange(3, 300),
    default=15,
    show_default=True,
    help="Seconds until a standby replica replaces a leader that does not renew its lease.",
)
@click.option(
    "--proxy-image",
    default=PROXY_IMAGE,
    show_default=True,
    help="Image of gateways and waypoints: Envoy 1.36 or later, and bash.",
)
@click.option(
    "--gateway-certificates/--no-gateway-certificates",
    default=True,
    show_default=True,
    help="Read the Secrets and ConfigMaps with certificates that ingress gateways refer to.",
)
@click.option(
    "--certificate-namespace",
    "certificate_namespaces",
    multiple=True,
    default=(ALL_NAMESPACES,),
    show_default=ALL_NAMESPACES,
    metavar="NAMESPACE",
    help="Namespace in which the controller may read them; * stands for all. Repeatable.",
)
@click.option(
    "--host-port-namespace",
    "host_port_namespaces",
    multiple=True,
    metavar="NAMESPACE",
    help="Namespace whose ingress gateways may bind ports of nodes; * stands for all. Repeatable.",
)
@click.option(
    "--root-namespace",
    default=DEFAULT_ROOT_NAMESPACE,
    show_default=True,
    help="Namespace whose policies apply to the whole mesh.",
)
@click.option(
    "--health-port",
    type=click.IntRange(0, 65535),
    default=15021,
    show_default=True,
    help="Port of GET /healthz/live and /healthz/ready; 0 disables it.",
)
@click.option(
    "--node-ip",
    "node_ips",
    multiple=True,
    metavar="IP",
    help="Address of this node, whose probes have precedence at the health port. Repeatable.",
)
@click.option(
    "--log-format",
    type=click.Choice(LOG_FORMATS),
    default="console",
    show_default=True,
    help="Format of the log on standard error.",
)
def command(
    *,
    kubeconfig: Path | None,
    context: str | None,
    namespace: str,
    agent_account: str,
    identity: str,
    trust_domain: str,
    cert_ttl: int,
    root_propagation_delay: float,
    lease_duration: int,
    proxy_image: str,
    gateway_certificates: bool,
    certificate_namespaces: tuple[str, ...],
    host_port_namespaces: tuple[str, ...],
    root_namespace: str,
    health_port: int,
    node_ips: tuple[str, ...],
    log_format: str,
) -> None:
    """Run the mesh's control plane in a cluster.

    Signs the workload certificates that agents request through the CertificateSigningRequest API.
    A request is signed only if it was made by an agent with its pod's token, and if a pod of the
    requested service account runs on the agent's node. The CA is the Secret `cacerts` in Istio's
    format; without it, a self-signed CA is created in the Secret `ztunnel-ca`. The root
    certificates are published in the ConfigMap istio-ca-root-cert of every namespace.

    Runs the pods of waypoints, which are Gateways of the classes istio-waypoint and
    ztunnel-waypoint, and of ingress gateways, of the classes istio and ztunnel. Reports in the
    status of policies, routes, Gateways and Services what is in force. Several replicas may run;
    one of them is the leader.
    """
    configure_logs(log_format)
    from ztunnel.controller.controller import Controller, Options  # noqa: PLC0415  slow; not for --help
    from ztunnel.controller.health_server import HealthServer  # noqa: PLC0415
    from ztunnel.controller.l7.session import L7Options  # noqa: PLC0415

    try:
        client = Access(kubeconfig, context).client()
    except AccessError as error:
        raise click.ClickException(str(error)) from error
    options = Options(
        identity=identity,
        namespace=namespace,
        agent_account=agent_account,
        trust_domain=trust_domain,
        ttl=timedelta(seconds=cert_ttl),
        root_propagation_delay_s=root_propagation_delay,
        lease_duration_s=lease_duration,
        l7=L7Options(
            Settings(trust_domain=trust_domain, root_namespace=root_namespace),
            DeploymentSettings(
                proxy_image=proxy_image, host_port_namespaces=frozenset(host_port_namespaces)
            ),
            frozenset(certificate_namespaces if gateway_certificates else ()),
        ),
    )
    controller = Controller(client, options)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: controller.stop())
    with HealthServer(health_port or None, controller.is_healthy, node_ips):
        controller.run()
