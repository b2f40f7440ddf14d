# SPDX-License-Identifier: Apache-2.0
"""Hostile input for every parser that reads what a peer, a pod or an object's author wrote.

    python -m tests.fuzz [TARGET...] --runs N --seed S

A target (`tests.fuzz.targets`) is a check of one parser, seeds and a way to change them; the engine
is atheris, which looks for inputs that reach new code. See docs/tasks/fuzz.md.
"""
