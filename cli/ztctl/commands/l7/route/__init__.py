# SPDX-License-Identifier: Apache-2.0
"""`ztctl route`: the routes of services, and what they do with a request."""

from __future__ import annotations

import click

from ztctl.commands.l7.route.list import list_
from ztctl.commands.l7.route.show import show
from ztctl.commands.l7.route.test import test

route = click.Group(
    "route",
    commands=[list_, show, test],
    help="Routes of services: where they attach, and what they do with a request.",
)
