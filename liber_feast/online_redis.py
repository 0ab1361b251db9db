"""Rows into Feast's Redis online store, the newest of each user stays.

Feast reads the time of what is there and then writes, and passes over rows of an equal time. Here one script per
row compares and writes, in Redis; the order lies in a field of our own beside the features.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from feast import FeatureView, RepoConfig
from feast.infra.online_stores.helpers import _mmh3, compute_versioned_name
from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig
from google.protobuf.timestamp_pb2 import Timestamp
from redis.backoff import ConstantBackoff
from redis.exceptions import AuthenticationError, ConnectionError, RedisError, TimeoutError
from redis.retry import Retry

from liber_feast.errors import OnlineStoreAway, StoreFailure, one_line
from liber_feast.online_values import EncodedRows

TIMEOUT_S = 5
"""Seconds until a Redis that does not answer counts as away, where the connection string names no `socket_timeout`."""

# KEYS: the hash. ARGV: field of the order, the order, "1" to write in any case, seconds to live, fields and values.
# Lua compares texts by bytes in the locale C, which Redis sets.
_WRITE = """
local before = redis.call('HGET', KEYS[1], ARGV[1])
if before and ARGV[3] ~= '1' and before > ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2], unpack(ARGV, 5))
if ARGV[4] ~= '0' then redis.call('EXPIRE', KEYS[1], ARGV[4]) end
return 1
"""
# KEYS: the hash. ARGV: the fields, that of the time first. A hash in which no view has a time is empty to Feast.
_DELETE = """
local was_there = redis.call('HEXISTS', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[1], unpack(ARGV))
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  if string.sub(field, 1, 4) == '_ts:' then return was_there end
end
redis.call('DEL', KEYS[1])
return was_there
"""


class RedisWriter:
    """Writes with a client of its own, whose connections it may share between threads."""

    def __init__(self, config: RepoConfig) -> None:
        self._config = config
        self._block: RedisOnlineStoreConfig = config.online_store

    def write(self, view: FeatureView, rows: EncodedRows, *, force: bool = False) -> int:
        """Write the rows that are not older than what is online, all `force`d; return how many.

        Raises:
            OnlineStoreAway: Redis does not answer.
            StoreFailure: Redis refuses: no memory, no rights, a replica.
        """
        return self.write_together([(view, rows)], force=force)

    def write_together(self, batches: Sequence[tuple[FeatureView, EncodedRows]], *, force: bool = False) -> int:
        """Do as `write` for several views, in one round trip; where that ends half-way, some rows may be there.

        Raises:
            OnlineStoreAway, StoreFailure: as `write`.
        """
        return sum(self._run([one for view, rows in batches for one in self._scripts(view, rows, force=force)]))

    def delete(self, view: FeatureView, keys: Sequence[bytes]) -> int:
        """Delete the rows of the keys; return how many there were.

        Raises:
            OnlineStoreAway, StoreFailure: as `write`.
        """
        name = self._name(view)
        features = [_mmh3(f"{name}:{field.name}") for field in view.features]
        fields = (f"_ts:{name}", f"_liber:{name}", *features)
        return sum(self._run([(_DELETE, 1, self._key(key), *fields) for key in keys]))

    def erase(self, views: Sequence[FeatureView]) -> None:
        """Leave it to Redis: what was deleted is gone from its main memory, and it writes its files anew by itself."""

    def close(self) -> None:
        """Give back the connections; the next write opens them again."""
        if "_client" in self.__dict__:
            self._client.close()

    def _scripts(self, view: FeatureView, rows: EncodedRows, *, force: bool) -> Iterator[tuple[Any, ...]]:
        name = self._name(view)
        fields = [(_mmh3(f"{name}:{feature}"), values) for feature, values in rows.features.items()]
        order, time, live = f"_liber:{name}", f"_ts:{name}", str(self._block.key_ttl_seconds or 0)
        for place, key in enumerate(rows.keys):
            at, number = rows.event_times[place], rows.numbers[place]
            written = (one for field, values in fields for one in (field, values[place]))
            yield _WRITE, 1, self._key(key), order, _order(at, number), str(int(force)), live, time, _time(at), *written

    def _run(self, scripts: Sequence[tuple[Any, ...]]) -> list[int]:
        with _in_one_line(self._block), self._client.pipeline(transaction=False) as pipe:
            for script in scripts:
                pipe.eval(*script)
            return [int(one) for one in pipe.execute()]

    def _key(self, entity_key: bytes) -> bytes:
        return redis_key(entity_key, config=self._config)

    def _name(self, view: FeatureView) -> str:
        return name_of(view, config=self._config)

    @cached_property
    def _client(self) -> Any:
        return open_client(self._block)


def name_of(view: FeatureView, *, config: RepoConfig) -> str:
    """Return what the fields of a view are called by in a hash."""
    return str(compute_versioned_name(view, config.registry.enable_online_feature_view_versioning))


def redis_key(entity_key: bytes, *, config: RepoConfig) -> bytes:
    """Return the key of the hash that Feast keeps all views of an entity in."""
    return entity_key + config.project.encode()


def open_client(block: RedisOnlineStoreConfig) -> Any:
    """Return a client of the online store, which waits `TIMEOUT_S` for an answer and asks once more."""
    text = block.connection_string
    waits = ("socket_timeout", "socket_connect_timeout")
    added = "".join(f",{name}={TIMEOUT_S}" for name in waits if f"{name}=" not in text)
    client = RedisOnlineStore()._get_client(block.model_copy(update={"connection_string": text + added}))
    client.set_retry(Retry(ConstantBackoff(0.1), retries=1))  # its own patience is 9 seconds
    return client


def _order(event_time: int, number: int) -> bytes:
    """Return both numbers so that their bytes are ordered as they are."""
    return b"".join((one + 2**63).to_bytes(8, "big") for one in (event_time, number))


def _time(event_time: int) -> bytes:
    seconds, micros = divmod(event_time, 1_000_000)
    made: bytes = Timestamp(seconds=seconds, nanos=micros * 1_000).SerializeToString()
    return made


@contextmanager
def _in_one_line(block: RedisOnlineStoreConfig) -> Iterator[None]:
    place = block.connection_string.split(",", maxsplit=1)[0]
    try:
        yield
    except AuthenticationError as error:
        raise StoreFailure(f"The online store, Redis at {place}, refuses the login: {one_line(error)}.") from error
    except (ConnectionError, TimeoutError, OSError) as error:
        raise OnlineStoreAway(f"The online store, Redis at {place}, does not answer: {one_line(error)}.") from error
    except RedisError as error:
        raise StoreFailure(f"The online store, Redis at {place}, refuses a write: {one_line(error)[:200]}.") from error
