"""How many examples hypothesis draws where one is costly."""

from hypothesis import settings


def at_most(count: int) -> settings:
    """Return settings with `count` examples, or as many as the profile says where that is fewer (the quick tests)."""
    return settings(max_examples=min(count, settings.default.max_examples))
