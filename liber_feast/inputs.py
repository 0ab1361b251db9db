"""Turn feature rows into a backbone's arrays; the one code training and serving share, so that there is no skew.

An `InputSpec` is fitted on the training part alone and travels with the weights. Rows are Arrow tables with the
columns of the feature services `ctr_baseline`, `ctr_training` or `ctr_serving` beside `user_id` and `item_id`; a
missing column, a null and a value unknown to the spec all become zeros, so every user and item has a score.

The arrays of a batch (B samples; T code slots, V numbers; N behaviors; P partitions; D and F vector widths):

| array | shape | what |
| --- | --- | --- |
| user_codes, item_codes | (B, T) int32 | vocabulary codes, one or more slots a field; 0 = missing or unknown |
| user_numbers, item_numbers | (B, V, 2) float32 | standardized value and 1 where there is one, else zeros |
| history_codes, history_numbers | (B, N, T), (B, N, V, 2) | the items of the last N behaviors, oldest first |
| history_mask, history_liked | (B, N) bool | which of the N are there; rating > like_above |
| history_rating | (B, N) float32 | standardized rating, 0 where there is none |
| dense | (B, 3) float32 | smoothed like rate, behavior count and length of the window, about centered; with item |
| | (B, 4), (B, 7) | texts how the window's evidence matches the candidate; with `evidence` also like rate and count |
| | | of the memory, and how its evidence matches (`liber_feast.match`) |
| vectors, sealed | (B, P, D) float32, (B, P) bool | with LIBER in training: partition vectors, oldest first |
| item_vector | (B, E) float32 | where the match of the memory is learned, in training: the candidate's vector |
| partitions, partition_there | (B, P, E + 1), (B, P) | likewise: evidence and log behaviors of each partition |
| fused | (B, F) float32 | with LIBER at serving: the vector computed when the last partition was sealed |
| distinct_codes, distinct_numbers | (I, T), (I, V, 2) | in requests: the items of the history, each once |
| history_places | (B, N) int64 | likewise: where each behavior's item, or padding, stands among them |
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from liber_feast.behavior import ITEM
from liber_feast.encoded import (
    DENSE_COUNT,
    EncodedItems,
    EncodedUsers,
    InputShape,
    ItemTable,
    MemoryKind,
    distinct_items,
)
from liber_feast.errors import ConfigError
from liber_feast.evidence_rows import (
    ITEM_VECTOR,
    LIKE_PRIOR,
    MatchScales,
    TableRows,
    UserEvidence,
    newer_vectors,
    read_item_vectors,
    read_user_evidence,
)
from liber_feast.fields import (
    NUMBER_LIMIT,
    Floats,
    InputField,
    Ints,
    column,
    encode_fields,
    floats,
    lookups,
    strings,
)
from liber_feast.item_rows import ItemRows
from liber_feast.match import matches
from liber_feast.partition_vectors import FUSED, VECTORS, read_fused_vectors, read_partition_vectors
from liber_feast.ragged import Ragged
from liber_feast.recent_behaviors import RecentBehaviors, read_recent_behaviors

__all__ = ["Batch", "EncodedItems", "EncodedUsers", "InputShape", "InputSpec", "ItemTable", "MemoryKind"]

Batch = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """How feature rows become arrays: vocabularies, scales, shapes and the item table."""

    user_fields: tuple[InputField, ...]
    item_fields: tuple[InputField, ...]
    like_above: float
    like_rate: float
    rating_mean: float
    rating_deviation: float
    count_mean: float
    """Mean over training rows of log(1 + behavior_count)."""
    count_deviation: float
    sequence_length: int = 20
    memory_width: int = 0
    fused_width: int = 0
    max_partitions: int = 50
    memory_kind: MemoryKind = "partitions"
    match: MatchScales | None = None
    """How evidence is compared with candidates; None without item texts."""
    items: ItemTable

    @cached_property
    def shape(self) -> InputShape:
        """The sizes a backbone is built from."""
        return InputShape(
            user_slots=tuple(field.slots for field in self.user_fields if not field.is_number),
            user_code_count=1 + sum(len(field.values) for field in self.user_fields),
            user_number_count=sum(field.is_number for field in self.user_fields),
            item_slots=tuple(field.slots for field in self.item_fields if not field.is_number),
            item_code_count=1 + sum(len(field.values) for field in self.item_fields),
            item_number_count=sum(field.is_number for field in self.item_fields),
            sequence_length=self.sequence_length,
            dense_count=DENSE_COUNT + (0 if self.match is None else self.match.dense_count),
            memory_width=self.memory_width,
            fused_width=self.fused_width,
            memory_kind=self.memory_kind,
            **({} if self.match is None else self.match.shape),
        )

    def encode(self, rows: pa.Table) -> Batch:
        """Return the arrays of `rows`, each a sample of one user and one candidate item, in their order.

        A candidate is as its own row describes it: what is known of it later is not in it. With LIBER the memory comes
        from the column `fused` where there is one, else from `vectors`.

        Raises:
            ConfigError: with LIBER, rows with neither `vectors` nor `fused`, or of another width than the spec's.
            DataSetError: a vector or fused vector that is not finite.
        """
        users, items = self.encode_users(rows), self.encode_items(rows)
        every = np.arange(rows.num_rows)
        return self.batch(users, items=items, user_rows=every, item_rows=every)

    def encode_request(
        self,
        user: pa.Table,
        *,
        item_ids: Sequence[str],
        user_rows: npt.NDArray[np.int64] | None = None,
        attributes: pa.Table | None = None,
        as_read: npt.NDArray[np.bool_] | None = None,
        newer: Mapping[str, Floats] | None = None,
    ) -> Batch:
        """Return the arrays of one user (one row), or of the users (row `user_rows[b]`), beside each of `item_ids`.

        Candidates come from the item table, as they were last. `attributes` are the online item attributes, one row
        per item id in the same order; they are used where `as_read` says so, or for items that the table does not know.
        Without them such an item is all unknown. `newer` are vectors of items of the windows that it does not know.

        Raises: see `encode`; ConfigError also where `user` is not one row or `attributes` has other rows.
        """
        ids = pa.array(list(item_ids), pa.string())
        given = pa.table({ITEM: ids}) if attributes is None else attributes
        if (user_rows is None and user.num_rows != 1) or given.num_rows != len(item_ids):
            raise ConfigError(
                f"a request needs one user row and an attribute row for each of its {len(item_ids)} items;"
                f" found {user.num_rows} and {given.num_rows}."
            )
        given = given.select([name for name in given.column_names if name != ITEM]).append_column(ITEM, ids)
        users, items = self.encode_users(user, newer=newer), self._known_items(given, as_read=as_read)
        of_users = np.zeros(len(ids), np.int64) if user_rows is None else user_rows
        batch = self.batch(users, items=items, user_rows=of_users, item_rows=np.arange(len(ids)))
        return batch | distinct_items(self.items, users=users, user_rows=of_users, length=self.sequence_length)

    def encode_items(self, rows: pa.Table, *, times: npt.NDArray[np.int64] | None = None) -> EncodedItems:
        """Return the candidates of `rows` from the item columns of each row itself.

        With item texts, an item's vector is that of the column `vector`; without one that of the item table, as it was
        at `times`, or last.
        """
        codes, numbers = encode_fields(rows, self.item_fields, self._item_lookups)
        if self.match is None:
            return EncodedItems(codes=codes, numbers=numbers)
        if ITEM_VECTOR in rows.column_names:
            vectors = read_item_vectors(rows, width=self.match.width)
        else:
            found = self._table_rows(strings(rows, ITEM), times=times)
            vectors = TableRows(values=self._item_vectors, rows=found.astype(np.int64))
        return EncodedItems(codes=codes, numbers=numbers, vectors=vectors)

    def encode_users(
        self,
        rows: pa.Table,
        *,
        recent: RecentBehaviors | None = None,
        vectors: Ragged[np.float32] | None = None,
        evidence: UserEvidence | None = None,
        newer: Mapping[str, Floats] | None = None,
    ) -> EncodedUsers:
        """Return the user side of `rows`: fields, window and, with LIBER, memory.

        `recent`, `vectors` and `evidence` are the rows' recent behaviors, partition vectors and memory's evidence where
        they are not columns of `rows`; `newer` are vectors of items that the item table does not know.

        Raises: see `encode`.
        """
        codes, numbers = encode_fields(rows, self.user_fields, self._user_lookups)
        behaviors = read_recent_behaviors(rows, last=self.sequence_length) if recent is None else recent
        items, given = behaviors.last(self.sequence_length)
        ratings = given.of(floats(given.values).astype(np.float32))
        found = self._table_rows(items.values, times=behaviors.times)
        users = EncodedUsers(
            codes=codes,
            numbers=numbers,
            dense=self._dense(rows, ratings=ratings),
            history=items.of(found),
            ratings=ratings,
        )
        if newer:
            own = newer_vectors(self._item_vectors, item_ids=items.values, rows=found, newer=newer)
            users = replace(users, history_vectors=own)
        if self.match is not None and self.match.memory:
            users = self._with_evidence(users, evidence=evidence, rows=rows, scales=self.match)
        if not self.memory_width:
            return users
        return self._with_memory(users, rows=rows) if vectors is None else replace(users, vectors=vectors)

    def liked(self, ratings: Floats) -> npt.NDArray[np.bool_]:
        """Return which ratings are likes."""
        return ratings > self.like_above

    def standard_ratings(self, ratings: Floats) -> Floats:
        """Return ratings about their mean over the training part, in its deviations; 0 where there is none."""
        standard: Floats = np.nan_to_num((ratings - self.rating_mean) / self.rating_deviation).astype(np.float32)
        return standard

    def batch(
        self, users: EncodedUsers, *, items: EncodedItems, user_rows: npt.NDArray[Any], item_rows: npt.NDArray[Any]
    ) -> Batch:
        """Return the arrays of the samples (`user_rows[b]`, `item_rows[b]`), padding what is ragged."""
        users_U, place_B = np.unique(user_rows, return_inverse=True)  # of a request, few
        rows_UN, mask_UN = users.history.pad(users_U, width=self.sequence_length)
        rating_UN, _ = users.ratings.pad(users_U, width=self.sequence_length)
        of_users = {
            "user_codes": users.codes[users_U],
            "user_numbers": users.numbers[users_U],
            "history_codes": self.items.codes[rows_UN],
            "history_numbers": self.items.numbers[rows_UN],
            "history_mask": mask_UN,
            "history_liked": mask_UN & self.liked(rating_UN),
            "history_rating": np.where(mask_UN, self.standard_ratings(rating_UN), np.float32(0)),
        }
        arrays: Batch = {name: values[place_B] for name, values in of_users.items()} | {
            "item_codes": items.codes[item_rows],
            "item_numbers": items.numbers[item_rows],
            "dense": self.dense(users, items=items, user_rows=user_rows, item_rows=item_rows),
        }
        if self.learns_match:
            assert users.evidence is not None and users.evidence.partitions is not None
            assert items.vectors is not None
            arrays["item_vector"] = items.vectors.take(item_rows)
            arrays["partitions"], arrays["partition_there"] = users.evidence.partitions.pad(user_rows, width=None)
        if users.fused is not None:
            arrays["fused"] = users.fused[user_rows]
        elif users.vectors is not None:
            arrays["vectors"], arrays["sealed"] = users.vectors.pad(user_rows, width=None)
        return arrays

    def dense(
        self, users: EncodedUsers, *, items: EncodedItems, user_rows: npt.NDArray[Any], item_rows: npt.NDArray[Any]
    ) -> Floats:
        """Return the dense numbers of the samples (`user_rows[b]`, `item_rows[b]`)."""
        numbers: Floats = users.dense[user_rows]
        if self.match is None:
            return numbers
        found = self.matches(users, items=items, user_rows=user_rows, item_rows=item_rows) / self.match.deviations
        whole: Floats = np.concatenate([numbers, np.clip(found, -NUMBER_LIMIT, NUMBER_LIMIT)], axis=1)
        return whole

    def matches(
        self, users: EncodedUsers, *, items: EncodedItems, user_rows: npt.NDArray[Any], item_rows: npt.NDArray[Any]
    ) -> Floats:
        """Return how evidence and candidate of the samples match: (B, 1) or (B, 2) dot products, not yet scaled."""
        return matches(
            users,
            items=items,
            user_rows=user_rows,
            item_rows=item_rows,
            liked=self.liked(users.ratings.values),
            table=self._item_vectors,
            length=self.sequence_length,
        )

    def to_json(self) -> dict[str, Any]:
        """Return everything but the item table's arrays as JSON values."""
        plain = {name: value for name, value in vars(self).items() if name in _PLAIN_NAMES}
        return plain | {
            "match": None if self.match is None else asdict(self.match),
            "user_fields": [asdict(field) for field in self.user_fields],
            "item_fields": [asdict(field) for field in self.item_fields],
            "item_ids": list(self.items.ids),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any], *, items: ItemTable) -> "InputSpec":
        """Return the spec that `to_json` described, with its item table; `items.ids` are replaced by those it named."""
        plain: dict[str, Any] = {name: document[name] for name in _PLAIN_NAMES}
        return cls(
            **plain,
            match=None if document["match"] is None else MatchScales(**document["match"]),
            user_fields=_fields_from(document["user_fields"]),
            item_fields=_fields_from(document["item_fields"]),
            items=replace(items, ids=tuple(document["item_ids"])),
        )

    def _known_items(self, rows: pa.Table, *, as_read: npt.NDArray[np.bool_] | None) -> EncodedItems:
        """Return the candidates of `rows`: from the item table, else from the item columns of the row itself."""
        found = self.item_rows.last(strings(rows, ITEM))
        codes, numbers = self.items.codes[found], self.items.numbers[found]
        new = np.flatnonzero(found == 0 if as_read is None else as_read)
        if len(new):
            encoded = self.encode_items(rows.take(pa.array(new)))
            codes[new], numbers[new] = encoded.codes, encoded.numbers
        if self.match is None:
            return EncodedItems(codes=codes, numbers=numbers)
        vectors = self._item_vectors[found]
        if len(new) and ITEM_VECTOR in rows.column_names:
            read = read_item_vectors(rows.take(pa.array(new)), width=self.match.width)
            there = np.flatnonzero(read.rows >= 0)
            vectors[new[there]] = read.take(there)
        return EncodedItems(codes=codes, numbers=numbers, vectors=TableRows(values=vectors, rows=np.arange(len(found))))

    def _table_rows(self, item_ids: pa.Array, *, times: npt.NDArray[np.int64] | None) -> Ints:
        """Return the rows of the item table for items, as they were at `times`; None: as they were last."""
        return self.item_rows.last(item_ids) if times is None else self.item_rows.at(item_ids, times=times)

    @property
    def learns_match(self) -> bool:
        """Whether the backbone weighs the partitions of the memory itself."""
        return self.match is not None and self.match.memory and self.match.match != "mean"

    @property
    def _item_vectors(self) -> Floats:
        assert self.items.vectors is not None, "a spec with `match` has the vectors of its items"
        return self.items.vectors

    def _with_evidence(
        self, users: EncodedUsers, *, evidence: UserEvidence | None, rows: pa.Table, scales: MatchScales
    ) -> EncodedUsers:
        found = read_user_evidence(rows, width=scales.width) if evidence is None else evidence
        if self.learns_match and found.partitions is None:
            raise ConfigError(
                f"match {scales.match!r} needs the evidence of each partition, and rows have that of the whole memory"
                " alone. It is for experiments: fit with match 'mean' what is to be served."
            )
        numbers = found.numbers(like_rate=self.like_rate, scales=scales)
        return replace(users, evidence=found, dense=np.concatenate([users.dense, numbers], axis=1))

    @cached_property
    def item_rows(self) -> ItemRows:
        """Where items stand in the item table."""
        return ItemRows(self.items)

    @cached_property
    def _user_lookups(self) -> dict[str, dict[str, int]]:
        return lookups(self.user_fields)

    @cached_property
    def _item_lookups(self) -> dict[str, dict[str, int]]:
        return lookups(self.item_fields)

    def _dense(self, rows: pa.Table, *, ratings: Ragged[np.float32]) -> Floats:
        length = ratings.lengths
        liked = ratings.sums(self.liked(ratings.values))
        rate = (liked + LIKE_PRIOR * self.like_rate) / (length + LIKE_PRIOR) - self.like_rate
        count = np.log1p(np.maximum(np.nan_to_num(floats(column(rows, "behavior_count", kind=pa.float64()))), length))
        standard = np.clip((count - self.count_mean) / self.count_deviation, -NUMBER_LIMIT, NUMBER_LIMIT)
        return np.stack([rate, standard, length / self.sequence_length], axis=1).astype(np.float32)

    def _with_memory(self, users: EncodedUsers, *, rows: pa.Table) -> EncodedUsers:
        if FUSED in rows.column_names:
            return replace(users, fused=read_fused_vectors(rows, width=self.fused_width))
        if VECTORS not in rows.column_names:
            raise ConfigError(f"LIBER features need the column `{VECTORS}` or `fused`; found neither in the rows.")
        vectors = read_partition_vectors(rows, width=self.memory_width, last=self.max_partitions)
        return replace(users, vectors=vectors)


_PLAIN_NAMES = (
    "like_above",
    "like_rate",
    "rating_mean",
    "rating_deviation",
    "count_mean",
    "count_deviation",
    "sequence_length",
    "memory_width",
    "fused_width",
    "max_partitions",
    "memory_kind",
)


def _fields_from(documents: Sequence[Mapping[str, Any]]) -> tuple[InputField, ...]:
    return tuple(InputField(**{**document, "values": tuple(document["values"])}) for document in documents)
