"""A correction of bitsandbytes 0.50's 4-bit weights on CPUs with AVX-512.

There, rows of a multiple of 16 but not of 64 weights are dequantised with the scales of other blocks: their error is
three times that of other rows, and of the same rows on a GPU. As one long row the same weights come out right.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence

import torch


@functools.cache
def correct_four_bit_rows() -> torch.library.Library:
    """Replace the CPU kernel in this process; the result has to be kept, and is."""
    import bitsandbytes  # noqa: F401  # registers the kernel

    kernel = torch.library.get_kernel("bitsandbytes::dequantize_4bit", "CPU")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)

    def dequantize(
        packed: torch.Tensor,
        absmax: torch.Tensor,
        blocksize: int,
        quant_type: str,
        shape: Sequence[int],
        dtype: torch.dtype,
    ) -> torch.Tensor:
        taken = shape if shape[-1] % blocksize == 0 else [1, math.prod(shape)]
        return kernel.call_boxed(keys, packed, absmax, blocksize, quant_type, taken, dtype).view(shape)

    library = torch.library.Library("bitsandbytes", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        library.impl("dequantize_4bit", dequantize, "CPU")
    return library
