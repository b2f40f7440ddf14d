# SPDX-License-Identifier: Apache-2.0
"""`ztctl proxy-config`: what the Envoy of a waypoint or gateway has, by the nouns of istioctl."""

from __future__ import annotations

import click

from ztctl.commands.l7.proxy_config.log import log
from ztctl.commands.l7.proxy_config.resources import cluster, endpoint, listener, route, secret
from ztctl.commands.l7.proxy_config.status import status

proxy_config = click.Group(
    "proxy-config",
    commands=[cluster, endpoint, listener, log, route, secret, status],
    help="Configuration of the Envoy of a waypoint or gateway.\n\nPOD is the name of a pod, or of "
    "a Gateway: of its pods, the first one is used.",
)
