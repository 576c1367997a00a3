"""One run in several processes, started by torchrun, accelerate or submitit."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import timedelta

from arcft import ranks
from arcft.cli import rank_words, silence
from arcft.errors import ArcftError

PATIENCE = timedelta(hours=2)
"""How long ranks wait for each other: one may predict or save while the others have nothing to do."""

QUIET = ("hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none")
"""Overrides with which Hydra writes nothing."""

OTHER_PLUGINS = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}
"""What `accelerate launch` sets in the environment, and what it stands for."""


class LaunchError(ArcftError):
    """Processes that were started in a way that can't work."""


def refuse_launch(job: str, arguments: Sequence[str]) -> None:
    """Raise LaunchError for commands that run in one process, and for launchers that started just one or that would
    train in a way of their own."""
    if os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_PORT" in os.environ and ranks.launched() == 1:
        raise LaunchError(
            "accelerate launch --cpu starts a single process unless it is given --mpirun_hostfile; for several on one "
            "machine use torchrun --nproc-per-node N, or accelerate launch --multi_gpu --num_processes N, which also "
            "works without GPUs"
        )
    if job == "train":
        _refuse_plugins()
    if ranks.launched() == 1:
        return
    if job != "train":
        more = "; ttft.workers uses several GPUs" if job == "evaluate" else ""
        raise LaunchError(
            f"{job} runs in one process but was started as {ranks.launched()}; start it without a launcher{more}"
        )
    if {"-m", "--multirun"} & set(arguments):
        raise LaunchError(
            f"-m under a launcher of {ranks.launched()} processes: a multirun starts its jobs itself; start the jobs "
            "one by one, or let hydra/launcher=submitit_slurm with hydra.launcher.tasks_per_node start several "
            "processes"
        )


def _refuse_plugins() -> None:
    for variable, name in OTHER_PLUGINS.items():
        if os.environ.get(variable, "").lower() == "true":
            raise LaunchError(
                f"accelerate launch with {name} ({variable}=true): sharding is chosen by training.fsdp; use accelerate "
                "launch --multi_gpu, or torchrun"
            )


def join() -> None:
    """Connect this process with the other ranks, and silence it if it is not the first. Does nothing without others."""
    _export_submitit()
    if ranks.launched() == 1:
        return
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        return
    if ranks.rank() > 0:
        silence.be_silent()
        sys.excepthook = rank_words.show_traceback
    backend = "cpu:gloo"
    if torch.cuda.is_available():
        gpus = torch.cuda.device_count()
        if ranks.local_rank() >= gpus:
            raise LaunchError(
                f"{ranks.local_count()} processes on a machine with {gpus} GPU{'s' * (gpus != 1)}: each needs one of "
                "its own; start fewer (--nproc-per-node), or set CUDA_VISIBLE_DEVICES= to use the CPU"
            )
        torch.cuda.set_device(ranks.local_rank())
        backend += ",cuda:nccl"
    dist.init_process_group(backend, timeout=PATIENCE)


def leave() -> None:
    """Disconnect from the other ranks, for which this one has ended well."""
    rank_words.end()
    if ranks.launched() > 1:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()


def _export_submitit() -> None:
    """Where submitit runs this job as several tasks, tell torch so in the environment, as torchrun does."""
    if "SUBMITIT_EXECUTOR" not in os.environ or "RANK" in os.environ:
        return
    import submitit

    if submitit.JobEnvironment().num_tasks > 1:
        submitit.helpers.TorchDistributedEnvironment().export(overwrite=True, set_cuda_visible_devices=False)
