"""Where gradients that are written by hand take the place of automatic differentiation."""

import torch
from torch import Tensor


def is_by_hand(*inputs: Tensor) -> bool:
    """Return whether these are the float32 inputs of a training step on a CPU that nobody compiles or exports."""
    learns = torch.is_grad_enabled() and any(one.requires_grad for one in inputs)
    is_plain = all(one.device.type == "cpu" and one.dtype == torch.float32 for one in inputs)
    return learns and is_plain and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()
