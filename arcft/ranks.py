"""Which of the processes of one training run this is, as launchers such as torchrun say in the environment.

It holds from the start of the program to its end. training/collectives.py asks torch.distributed instead, for as long
as the ranks are connected: what sends or receives goes by that.
"""

from __future__ import annotations

import os

from arcft.errors import ArcftError


class RankError(ArcftError):
    """Another rank failed, and reports the error itself."""


class LostRankError(ArcftError):
    """Another rank died without reporting an error, for example because it was killed."""


def launched() -> int:
    """The number of processes that were started for the run; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process among all, from 0. Rank 0 prints and writes; the others are silent."""
    return int(os.environ.get("RANK", "0")) if launched() > 1 else 0


def local_rank() -> int:
    """The number of this process among those of its node, from 0: the GPU that it uses."""
    return int(os.environ.get("LOCAL_RANK", "0")) if launched() > 1 else 0


def local_count() -> int:
    """The number of processes on this node."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if launched() > 1 else 1
