# SPDX-License-Identifier: Apache-2.0
"""L7 configuration: routes, policies and gateways as configurations of Envoy.

Pure: no I/O, no clock. The gateway process, the controller, the lab and ztctl share it, so that the
configuration that Envoy gets, the conditions in an object's status and the output of ztctl agree.
"""
