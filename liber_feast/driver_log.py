"""What psycopg, the driver of PostgreSQL, logs of a connection that it gives up."""

import logging


def quiet_driver() -> None:
    """Keep back psycopg's warnings of errors that it ignores while it passes on another one.

    Who called has that other error, the one with the cause, and says it in a line.
    """
    logging.getLogger("psycopg").addFilter(_is_of_its_own)  # not added twice


def _is_of_its_own(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("error ignored ")
