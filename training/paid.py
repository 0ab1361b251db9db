"""Who may ask an LLM for texts that cost money: a user who said so."""

from pathlib import Path

from liber_feast.errors import ConfigError
from liber_feast.interest_config import ExtractiveConfig
from liber_feast.repo import open_store


def check_paid(repo: Path, *, pay: bool, owner: str, what: str) -> None:
    """Check that `owner` may ask the interest backend of a feature repo for `what`; the extractive one costs nothing.

    Raises:
        ConfigError: it is an LLM, and `pay` is False.
    """
    block = open_store(repo).config.batch_engine.interest
    if not pay and not isinstance(block, ExtractiveConfig):
        raise ConfigError(
            f"{owner} would ask {block.model} for {what}. Add --pay if it shall (the budget of the interest block"
            " holds), or leave it out."
        )
