# SPDX-License-Identifier: Apache-2.0
"""Hypothesis without its per-example deadline: a busy machine is no failure."""

from __future__ import annotations

import hypothesis

hypothesis.settings.register_profile("ztunnel", deadline=None)
hypothesis.settings.load_profile("ztunnel")
