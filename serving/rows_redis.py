"""Read the rows of several views from Feast's Redis online store: one command for each key, in one round trip."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from feast import FeatureStore
from feast.infra.online_stores.helpers import _mmh3

from liber_feast.online_redis import name_of, open_client, redis_key
from serving.rows import Encoded, ReadView, Row, keys_of


class RedisRows:
    """Reads with a client of its own, whose connections it may share between threads."""

    def __init__(self, store: FeatureStore, views: Sequence[ReadView]) -> None:
        config = store.config
        self._config, self._views = config, list(views)
        self._types = [one.types for one in views]
        names = [name_of(one.view, config=config) for one in views]
        self._fields = [
            field
            for name, one in zip(names, views, strict=True)
            for field in (f"_ts:{name}", *(_mmh3(f"{name}:{feature}") for feature in one.features))
        ]

    def read(self, ids: Sequence[str]) -> list[dict[str, Row]]:
        """Return for each id its row in each view.

        Raises:
            redis.exceptions.RedisError: Redis does not answer, or refuses.
        """
        keys = keys_of(self._views[0].view, ids)
        distinct = list(dict.fromkeys(key for key in keys if key is not None))
        with self._client.pipeline(transaction=False) as pipe:
            for key in distinct:
                pipe.hmget(redis_key(key, config=self._config), self._fields)
            found = dict(zip(distinct, pipe.execute(), strict=True))
        return [{} if key is None else self._rows(found[key]) for key in keys]

    def _rows(self, values: Sequence[bytes | None]) -> dict[str, Row]:
        rows: dict[str, Row] = {}
        start = 0
        for one, types in zip(self._views, self._types, strict=True):
            time, *kept = values[start : start + len(one.features) + 1]
            start += len(one.features) + 1
            if time is not None:
                rows[one.name] = Encoded(self._named(one, kept), types)
        return rows

    @staticmethod
    def _named(one: ReadView, kept: Sequence[bytes | None]) -> Mapping[str, bytes | None]:
        return dict(zip(one.features, kept, strict=True))

    @cached_property
    def _client(self) -> Any:
        return open_client(self._config.online_store)
