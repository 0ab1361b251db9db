"""Strong dropout of user ids: a step sees most of its samples as of users that nobody knows.

An id that a fit sees whenever it sees the user learns the user's bias, and the rest of the backbone leaves it to the
id; then it lacks for everybody else. Hidden often enough, it adds to what the backbone says without it.
"""

from copy import copy

import torch
from torch import Tensor

UNKNOWN = 0
"""The code of what the training part does not have."""
ID_SLOT = 0
"""Where `fit_inputs` puts the user id: before all fields of the user."""


def hide_ids(batch: dict[str, Tensor], *, share: float) -> dict[str, Tensor]:
    """Return a batch, whose user id is a field, with the ids of a `share` of its samples unknown, by torch's seed."""
    codes = batch["user_codes"].clone()
    codes[torch.rand(len(codes), device=codes.device) < share, ID_SLOT] = UNKNOWN
    hidden = copy(batch)  # of its own class: that of a step makes some tensors when they are asked for
    hidden["user_codes"] = codes
    return hidden


def user_id_told(*, is_field: bool, dropout: float) -> str:
    """Return what a table says of the user id."""
    if not is_field:
        return "no field"
    return f"a field, hidden from {dropout:.0%} of a step's samples" if dropout else "a field"
