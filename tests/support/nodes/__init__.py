# SPDX-License-Identifier: Apache-2.0
"""A small cluster of real kubelets for tests: nodes, images, objects, installation of the mesh."""
