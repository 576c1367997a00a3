"""Optimizers: AdamW, Muon beside AdamW, and the 8-bit variants of bitsandbytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import peft
import torch
from torch import nn
from transformers import PreTrainedModel

from arcft.config.optimizer import EightBitAdamWConfig, MuonConfig, OptimizerConfig
from arcft.console import note
from arcft.errors import ArcftError

Groups = list[dict[str, Any]]
"""Parameter groups, as torch.optim takes them."""


_EIGHT_BIT_NUMEL = 4096
"""Parameters with fewer elements have state in 32 bits: min_8bit_size of bitsandbytes' optimizers."""


class OptimizerError(ArcftError):
    """An optimizer that can't run on this machine, or that has nothing to train."""


def build_optimizer(
    model: PreTrainedModel | peft.PeftModel, config: OptimizerConfig, learning_rate: float
) -> torch.optim.Optimizer:
    """The configured optimizer over the trainable parameters of `model`.

    Weight decay applies to matrices only, not to biases and norms. `learning_rate` is the peak. Raise OptimizerError.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise OptimizerError("the model has no trainable parameter; check lora.target_modules")
    if isinstance(config, MuonConfig):
        return _muon(model, trainable, config, learning_rate)
    options = _adamw_options(config, learning_rate)
    if isinstance(config, EightBitAdamWConfig):
        return _eight_bit(config.name, trainable[0].device)(_groups(trainable, config), **options)
    return torch.optim.AdamW(_groups(trainable, config), **options)


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for hidden weight matrices and AdamW for everything else, as one optimizer.

    The two share this object's parameter groups, Muon's first, so that schedules and gradient scalers see one
    optimizer; its state is saved as {"muon": ..., "adamw": ...}. Either group may be empty.
    """

    def __init__(
        self,
        matrices: list[nn.Parameter],
        others: Groups,
        *,
        momentum: float,
        weight_decay: float,
        adamw: dict[str, Any],
    ) -> None:
        """Create the two optimizers.

        Args:
            matrices: Weights [out, in] for Muon.
            others: Parameter groups for AdamW.
            momentum: Of Muon.
            weight_decay: Of Muon; that of AdamW is part of its groups.
            adamw: Arguments of AdamW; Muon has its learning rate too.
        """
        # torch refuses to create an optimizer without parameters.
        self.parts: dict[str, torch.optim.Optimizer] = {}
        if matrices:
            # Scaled as AdamW's updates are (Moonlight, Liu et al. 2025), so that one learning rate fits both.
            self.parts["muon"] = torch.optim.Muon(
                matrices, lr=adamw["lr"], momentum=momentum, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        if others:
            self.parts["adamw"] = torch.optim.AdamW(others, **adamw)
        super().__init__([group for part in self.parts.values() for group in part.param_groups], {})
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step of both; a closure is evaluated once, before them."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts.values():
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The state of each optimizer by its name."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned. Raise OptimizerError if it is of other optimizers."""
        if state_dict.keys() != self.parts.keys():
            raise OptimizerError(
                f"the saved optimizer state is for {', '.join(state_dict)}, this run needs {', '.join(self.parts)}; "
                "resume with the optimizer that the run was started with"
            )
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])
        self._share()

    def _share(self) -> None:
        # The same group objects as the parts have, so that a learning rate that is set here reaches them.
        self.param_groups = [group for part in self.parts.values() for group in part.param_groups]


def _muon(
    model: PreTrainedModel | peft.PeftModel,
    trainable: Iterable[nn.Parameter],
    config: MuonConfig,
    learning_rate: float,
) -> MuonWithAdamW:
    matrices, others = _split_for_muon(model, trainable)
    return MuonWithAdamW(
        matrices,
        _groups(others, config),
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        adamw=_adamw_options(config, learning_rate),
    )


def _split_for_muon(
    model: PreTrainedModel | peft.PeftModel, trainable: Iterable[nn.Parameter]
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters for Muon, and those for AdamW."""
    # Rows of embeddings and heads are tokens, not hidden directions: Muon's authors leave them to AdamW.
    ends = {
        id(parameter)
        for module in (model.get_input_embeddings(), model.get_output_embeddings())
        if module is not None
        for parameter in module.parameters()
    }
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in trainable:
        hidden = parameter.ndim == 2 and id(parameter) not in ends
        (matrices if hidden else others).append(parameter)
    return matrices, others


def state_bytes(model: PreTrainedModel | peft.PeftModel, config: OptimizerConfig) -> int:
    """Bytes of optimizer state that the configured optimizer keeps for the trainable parameters of `model`."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if isinstance(config, MuonConfig):
        matrices, others = _split_for_muon(model, trainable)
        return 4 * _numel(matrices) + 8 * _numel(others)
    if isinstance(config, EightBitAdamWConfig):
        large = [parameter for parameter in trainable if parameter.numel() >= _EIGHT_BIT_NUMEL]
        return 8 * _numel(trainable) - 6 * _numel(large)
    return 8 * _numel(trainable)


def _numel(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _adamw_options(config: OptimizerConfig, learning_rate: float) -> dict[str, Any]:
    return {"lr": learning_rate, "betas": (config.beta1, config.beta2), "eps": config.eps}


def _groups(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> Groups:
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for parameter in parameters:
        (decayed if parameter.ndim >= 2 else spared).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _eight_bit(name: str, device: torch.device) -> type[torch.optim.Optimizer]:
    try:
        import bitsandbytes
    except ImportError as error:
        raise OptimizerError(f"optimizer={name} needs bitsandbytes: pip install bitsandbytes ({error})") from error
    if name == "paged_adamw_8bit" and device.type == "cpu":
        note("optimizer=paged_adamw_8bit: there is no GPU whose memory could be paged; the same as adamw_8bit")
        name = "adamw_8bit"
    return {
        "adamw_8bit": bitsandbytes.optim.AdamW8bit,
        "paged_adamw_8bit": bitsandbytes.optim.PagedAdamW8bit,
    }[name]
