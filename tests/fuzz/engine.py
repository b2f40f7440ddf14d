# SPDX-License-Identifier: Apache-2.0
"""Runs one target under atheris in its own process, since libFuzzer ends the process.

    python -m tests.fuzz.engine TARGET [options and folders of libFuzzer]

TARGET is a name in `tests.fuzz.targets` or the full name of a module with a `TARGET`.
"""

from __future__ import annotations

import importlib
import random
import sys

import atheris
import structlog

from tests.fuzz.target import Mutate, Target

LIBRARIES = ["ztunnel", "dns", "hpack"]  # coverage of these guides the search


def load(name: str) -> Target:
    """Load a target; its imports are instrumented if the engine is the main module."""
    module = importlib.import_module(name if "." in name else f"tests.fuzz.targets.{name}")
    target = module.TARGET
    assert isinstance(target, Target)
    return target


def _mutator(mutate: Mutate) -> object:
    """Mutate by structure, by bytes, or both, each a third of the time."""

    def change(octets: bytes, max_size: int, seed: int) -> bytes:
        chance = random.Random(seed)
        how = chance.randrange(3)
        if how:
            octets = mutate(octets, chance)[:max_size]
        return octets if how == 1 else bytes(atheris.Mutate(octets, max_size))

    return change


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    with atheris.instrument_imports(include=LIBRARIES):
        target = load(sys.argv[1])
    options = [sys.argv[0], f"-max_len={target.max_len}", *sys.argv[2:]]
    atheris.Setup(options, target.check, custom_mutator=_mutator(target.mutate))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
