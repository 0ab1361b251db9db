"""Feast without its run-time type checks, for programs that only read what `feast apply` has checked.

Feast decorates the classes of definitions with typeguard's `typechecked`, which parses a class's module anew for each
of its methods: half of the five seconds that importing Feast takes, and a fifth of the time of a read of the registry.
typeguard says that the checks are not meant for production; its own switch, `python -O`, leaves out assertions too.
"""

from typing import TypeVar

import typeguard

Target = TypeVar("Target")


def leave_out_type_checks() -> None:
    """Let the classes of Feast that this process imports from now on be as they are written."""
    setattr(typeguard, "typechecked", _as_written)  # noqa: B010 (an assignment would have to fit the overloads)


def _as_written(target: Target) -> Target:
    return target
