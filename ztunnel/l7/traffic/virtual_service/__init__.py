# SPDX-License-Identifier: Apache-2.0
"""VirtualService as routes of Envoy, as far as Istio's waypoints support it.

Routes are parsed one by one: an invalid route answers 500 to the requests that it matches, and
does not affect the others.
"""
