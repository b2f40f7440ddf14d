# SPDX-License-Identifier: Apache-2.0
"""`ztunnel controller`: the cluster's signer, from the command line."""

from __future__ import annotations

import os
import signal
from datetime import timedelta
from pathlib import Path

import click

from ztunnel.kube.constants import AGENT_ACCOUNT, NAMESPACE
from ztunnel.mesh.model import DEFAULT_TRUST_DOMAIN
from ztunnel.telemetry.logs import LOG_FORMATS, configure_logs


@click.command("controller")
@click.option(
    "--kubeconfig",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="How to reach the API server.  [default: the pod's service account]",
)
@click.option("--context", help="One of the kubeconfig's.  [default: its current one]")
@click.option(
    "--namespace",
    envvar="POD_NAMESPACE",
    default=NAMESPACE,
    show_default=True,
    help="Where CA, Lease and the agents are.",
)
@click.option(
    "--agent-account",
    default=AGENT_ACCOUNT,
    show_default=True,
    help="The agents' service account there: nobody else gets anything signed.",
)
@click.option(
    "--identity",
    envvar="POD_NAME",
    default=lambda: f"{os.uname().nodename}-{os.getpid()}",
    help="Name in the Lease.  [default: host name and pid]",
)
@click.option("--trust-domain", default=DEFAULT_TRUST_DOMAIN, show_default=True)
@click.option(
    "--cert-ttl",
    type=click.IntRange(2, 10 * 365 * 86400),
    default=86400,
    show_default=True,
    help="Seconds that a certificate is valid at most.",
)
@click.option(
    "--settle",
    type=click.FloatRange(0, 3600),
    default=10.0,
    show_default=True,
    help="Seconds between publishing the root of a new CA and signing with it.",
)
@click.option(
    "--lease",
    type=click.IntRange(3, 300),
    default=15,
    show_default=True,
    help="Seconds after which another signer takes over from one that is gone.",
)
@click.option(
    "--health-port",
    type=click.IntRange(0, 65535),
    default=15021,
    show_default=True,
    help="Answers GET /healthz/ready; 0 for none.",
)
@click.option("--log-format", type=click.Choice(LOG_FORMATS), default="console", show_default=True)
def command(
    *,
    kubeconfig: Path | None,
    context: str | None,
    namespace: str,
    agent_account: str,
    identity: str,
    trust_domain: str,
    cert_ttl: int,
    settle: float,
    lease: int,
    health_port: int,
    log_format: str,
) -> None:
    """Sign workload certificates that the agents ask for through Kubernetes' API.

    A request is signed only if it comes from an agent, by the token of its pod, and a pod of that
    service account is on the same node. The CA is the Secret `cacerts` in Istio's form, else one
    that is made and kept in the Secret `ztunnel-ca`. Its roots are put into the ConfigMap
    istio-ca-root-cert of every namespace. Several may run: one leads.
    """
    configure_logs(log_format)
    from ztunnel.controller.controller import Options, SignerProcess  # noqa: PLC0415
    from ztunnel.controller.health_server import Health  # noqa: PLC0415  --help needs none of it
    from ztunnel.kube.client.access import Access, AccessError  # noqa: PLC0415

    try:
        api = Access(kubeconfig, context).client()
    except AccessError as error:
        raise click.ClickException(str(error)) from error
    options = Options(
        identity=identity,
        namespace=namespace,
        agent_account=agent_account,
        trust_domain=trust_domain,
        ttl=timedelta(seconds=cert_ttl),
        settle=settle,
        lease=lease,
    )
    process = SignerProcess(api, options)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: process.stop())
    with Health(health_port or None, process.is_healthy):
        process.run()
