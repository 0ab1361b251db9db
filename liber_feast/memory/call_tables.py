"""Tables of the calls to an LLM: one row a call, and what runs and days have spent of their budgets.

Times are microseconds since 1970 UTC; money is whole nanodollars.
"""

import sqlalchemy as sa

from liber_feast.memory.schema import metadata

# SQLite numbers rows by itself only for a column of exactly the type INTEGER.
_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

calls = sa.Table(
    "calls",
    metadata,
    sa.Column("call_id", _KEY, primary_key=True, autoincrement=True),
    sa.Column("run_id", sa.Text, nullable=False, index=True),
    sa.Column("day", sa.Text, nullable=False, comment="ISO date (UTC) on which it was reserved"),
    sa.Column("user_id", sa.Text, nullable=False),
    sa.Column("partition_index", sa.Integer, nullable=False),
    sa.Column("stage", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("prompt_version", sa.Text, nullable=False),
    sa.Column("outcome", sa.Text, comment="null: reserved and not settled; counts as spent"),
    sa.Column("input_tokens", sa.BigInteger, nullable=False, comment="the most, until it is known what it was"),
    sa.Column("output_tokens", sa.BigInteger, nullable=False, comment="likewise"),
    sa.Column("cached_tokens", sa.BigInteger, nullable=False, comment="of the input tokens"),
    sa.Column("nanodollars", sa.BigInteger, nullable=False, comment="the most, until it is known what it was"),
    sa.Column("seconds", sa.Double, nullable=False),
    sa.Column("reserved_time", sa.BigInteger, nullable=False),
    sa.Column("settled_time", sa.BigInteger),
)

budget_counters = sa.Table(
    "budget_counters",
    metadata,
    sa.Column("scope", sa.Text, primary_key=True, comment="run/ID or day/DATE"),
    sa.Column("calls", sa.BigInteger, nullable=False),
    sa.Column("tokens", sa.BigInteger, nullable=False, comment="spent and reserved"),
    sa.Column("nanodollars", sa.BigInteger, nullable=False, comment="spent and reserved"),
)
"""Each the sum over the calls of its run or day: a budget is checked against two rows, however many calls it has."""
