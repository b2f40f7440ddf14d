# SPDX-License-Identifier: Apache-2.0
"""Sessions with the proxy's workers over the agent link."""
