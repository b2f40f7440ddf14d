# SPDX-License-Identifier: Apache-2.0
"""`ztctl policy`: policies, and the authorization decisions that follow from them."""

from __future__ import annotations

from ztctl.commands.policy.explain import explain
from ztctl.commands.policy.query import POLICIES
from ztctl.commands.policy.show import show
from ztctl.commands.policy.test import test
from ztctl.resources import list_group

policy = list_group(POLICIES)
for command in (show, test, explain):
    policy.add_command(command)
