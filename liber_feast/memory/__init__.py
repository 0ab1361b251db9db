"""The memory: short-term caches, sealed partitions and every text, in one SQL database.

It is the only source of truth. Delta tables and the online store are projections of it and can be rebuilt
from it without an LLM.
"""

from liber_feast.memory.append import Appended
from liber_feast.memory.store import Memory

__all__ = ["Appended", "Memory"]
