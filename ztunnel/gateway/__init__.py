# SPDX-License-Identifier: Apache-2.0
"""`ztunnel gateway`: configures the Envoys of this node's waypoint and gateway pods by delta ADS.

An unprivileged process, one per node. It receives the mesh and the L7 objects over the agent link,
compiles them (`ztunnel.l7`), and serves the result to each pod over listeners that the agent opens
inside the pod. Envoy keeps its configuration while this process or the agent is away.
"""
