"""The batches of a fit, made on its device from tensors that are loaded onto it once.

A batch costs small copies, of the numbers of its samples; what repeats from sample to sample (the behaviors of a user,
the vectors of their partitions, the fields of an item) lies on the device once and is gathered there.

Shape suffixes: B samples of the batch, Q samples in all, N recent behaviors, T code slots, V numbers.
"""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from liber_feast.fields import Floats, Ints
from liber_feast.inputs import EncodedItems, EncodedUsers, InputSpec
from training.backbones.behaviors import DISTINCT, PLACES
from training.backbones.fusing import LENGTHS, WINDOWS
from training.windows import load_table, load_windows, window_index


class StepBatch(dict[str, Tensor]):
    """The batch of a training step on a CPU, which says where its partition vectors lie (`WINDOWS`).

    `vectors` and `sealed` are made when a backbone asks for one of them: our fusion does without.
    """

    def __init__(self, tensors: Mapping[str, Tensor], *, gather: Callable[[], tuple[Tensor, Tensor]]) -> None:
        super().__init__(tensors)
        self._gather = gather

    def __missing__(self, name: str) -> Tensor:
        if name not in ("vectors", "sealed"):
            raise KeyError(name)
        vectors, sealed = self._gather()
        self["sealed"] = sealed & (self[LENGTHS] > 0)[:, None]  # a memory may be hidden since
        self["vectors"] = vectors
        return self[name]


class SampleBatches:
    """Encoded samples on a device; batches equal `to_tensors(spec.batch(...))` of the same samples."""

    def __init__(
        self,
        spec: InputSpec,
        *,
        users: EncodedUsers,
        items: EncodedItems,
        labels: npt.NDArray[np.bool_],
        device: torch.device,
    ) -> None:
        """Load Q samples onto `device`: sample q is row q of `users`, `items` and `labels`.

        Raises:
            DataSetError: there are more behaviors or partitions than positions can name.
        """
        self.device = device
        self.has_evidence = spec.match is not None and spec.match.memory
        self.has_memory = self.has_evidence or users.vectors is not None
        self._width = spec.sequence_length
        every = np.arange(len(labels))
        fields = {
            "user_codes": users.codes,
            "user_numbers": users.numbers,
            "item_codes": items.codes,
            "item_numbers": items.numbers,
            "dense": spec.dense(users, items=items, user_rows=every, item_rows=every),
        }
        self._fields = {name: torch.from_numpy(values).to(device) for name, values in fields.items()}
        self._labels = torch.from_numpy(labels.astype(np.float32)).to(device)
        self._item_codes, self._item_numbers = (
            torch.from_numpy(values).to(device) for values in (spec.items.codes, spec.items.numbers)
        )
        rows = _first_equal(spec.items.codes, spec.items.numbers)[users.history.values]
        self._history = load_windows(users.history, rows, device=device)
        self._seen = np.zeros(len(spec.items.codes), np.int64)
        self._rating, self._liked = (
            load_table(values, device=device).rows
            for values in (spec.standard_ratings(users.ratings.values), spec.liked(users.ratings.values))
        )
        self._vectors = (
            None if users.vectors is None else load_windows(users.vectors, users.vectors.values, device=device)
        )
        evidence = users.evidence
        self._partitions = None
        if spec.learns_match and evidence is not None and evidence.partitions is not None and items.vectors is not None:
            self._partitions = load_windows(evidence.partitions, evidence.partitions.values, device=device)
            self._evidence_counts = evidence.partitions.lengths
            self._fields["item_vector"] = torch.from_numpy(items.vectors.take(every)).to(device)
        # With the CPU too: the width of a batch is known without waiting for the device.
        self._partition_counts = None if users.vectors is None else users.vectors.lengths

    def batch(self, samples_B: npt.NDArray[np.int64]) -> dict[str, Tensor]:
        """Return the tensors of a backbone's batch, as `liber_feast.inputs` lists them."""
        chosen_B = self._chosen(samples_B)
        tensors = self._plain(samples_B, chosen_B)
        if self._vectors is not None:
            tensors["vectors"], tensors["sealed"] = self._gathered(samples_B, chosen_B)
        return tensors

    def step_batch(self, samples_B: npt.NDArray[np.int64]) -> dict[str, Tensor]:
        """Return the batch of a training step: on a CPU with `WINDOWS` for `vectors` and `sealed`."""
        if self._vectors is None or self.device.type != "cpu":
            return self.batch(samples_B)
        chosen_B, memory = self._chosen(samples_B), self._vectors
        windows = (memory.table.rows, memory.starts_Q[chosen_B], memory.lengths_Q[chosen_B])
        return StepBatch(
            self._plain(samples_B, chosen_B) | dict(zip(WINDOWS, windows, strict=True)),
            gather=lambda: self._gathered(samples_B, chosen_B),
        )

    def labels(self, samples_B: npt.NDArray[np.int64]) -> Tensor:
        """Return (B,) float32, 1 where the sample is a like."""
        return self._labels.index_select(0, self._chosen(samples_B))

    def _chosen(self, samples_B: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(samples_B).to(self.device, non_blocking=True)

    def _plain(self, samples_B: npt.NDArray[np.int64], chosen_B: Tensor) -> dict[str, Tensor]:
        """Return all tensors but the partition vectors."""
        tensors = {name: values.index_select(0, chosen_B) for name, values in self._fields.items()}
        tensors |= self._recent(chosen_B)
        if self._partitions is not None:
            width = max(int(self._evidence_counts[samples_B].max(initial=0)), 1)
            tensors["partitions"], tensors["partition_there"] = self._partitions.gather(chosen_B, width=width)
        return tensors

    def _gathered(self, samples_B: npt.NDArray[np.int64], chosen_B: Tensor) -> tuple[Tensor, Tensor]:
        assert self._vectors is not None and self._partition_counts is not None, "samples without LIBER have no vectors"
        width = max(int(self._partition_counts[samples_B].max(initial=0)), 1)
        return self._vectors.gather(chosen_B, width=width)

    def _recent(self, chosen_B: Tensor) -> dict[str, Tensor]:
        history = self._history
        index_BN, there_BN = window_index(
            history.starts_Q[chosen_B],
            history.lengths_Q[chosen_B],
            width=self._width,
            padding=len(history.table.rows) - 1,
        )
        places = index_BN.view(-1)
        rows = history.table.rows.index_select(0, places)
        shape_BN = index_BN.shape
        return self._distinct(rows, shape_BN) | {
            "history_codes": self._item_codes.index_select(0, rows).view(*shape_BN, *self._item_codes.shape[1:]),
            "history_numbers": self._item_numbers.index_select(0, rows).view(*shape_BN, *self._item_numbers.shape[1:]),
            "history_mask": there_BN,
            "history_liked": self._liked.index_select(0, places).view(shape_BN),
            "history_rating": self._rating.index_select(0, places).view(shape_BN),
        }

    def _distinct(self, rows_M: Tensor, shape_BN: torch.Size) -> dict[str, Tensor]:
        """Return the distinct items of a batch, and where each of its behaviors finds its own.

        Not on a GPU, which would have to be waited for: how many there are is not known before.
        """
        if rows_M.is_cuda:
            return {}
        rows, order = rows_M.numpy(), np.arange(len(rows_M))
        self._seen[rows] = order
        one = self._seen[rows]  # of all behaviors of an item the same one
        is_one = one == order
        distinct = torch.from_numpy(rows[is_one])
        places = torch.from_numpy((is_one.cumsum() - 1)[one])
        codes, numbers = (values.index_select(0, distinct) for values in (self._item_codes, self._item_numbers))
        return dict(zip((*DISTINCT, PLACES), (codes, numbers, places.view(shape_BN)), strict=True))


def _first_equal(codes_RT: Ints, numbers_RV2: Floats) -> Ints:
    """Return for each item the first row that is encoded as it is."""
    encoded = np.ascontiguousarray(
        np.concatenate([codes_RT, numbers_RV2.reshape(len(codes_RT), -1).view(np.int32)], axis=1)
    )
    _, first, inverse = np.unique(encoded, axis=0, return_index=True, return_inverse=True)
    rows: Ints = first[inverse].astype(np.int32)
    return rows
