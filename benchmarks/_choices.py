"""Options of benchmarks that name some of what there is."""

import argparse
from collections.abc import Callable, Sequence


def some_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Return what reads an option that names some of `known`, with commas between them."""

    def read(text: str) -> list[str]:
        names = text.split(",")
        unknown = sorted(set(names) - set(known))
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is unknown. Known: {', '.join(known)}.")
        return names

    return read
