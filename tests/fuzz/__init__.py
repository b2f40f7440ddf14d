# SPDX-License-Identifier: Apache-2.0
"""Fuzzing of every parser whose input comes from a peer, a pod or the author of an object.

    python -m tests.fuzz [TARGET...] --runs N --seed S

A target (`tests.fuzz.targets`) has a check of one parser, seeds and a mutator; the engine is
atheris, which searches for inputs that reach new code. See docs/tasks/fuzz.md.
"""
