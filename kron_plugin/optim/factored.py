"""Optimisers with separate parameter groups for the Kronecker factors and the biases of a KRU.

A change to one factor moves all of W, so factors need smaller steps than other parameters. With one
rate of 1e-3 for all, copy memory never leaves the trivial baseline from T = 300 on. W and the bias
of modReLU act at each of the T steps, so long sequences may need smaller steps still.
"""

from dataclasses import dataclass, field
from typing import Any, Dict, List

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.optim import FairseqOptimizer, register_optimizer
from omegaconf import II

from ..modules import parameter_groups

MOST = 1e6  # of rates, decays and epsilons; torch converts them to single precision


@dataclass
class FactoredConfig(FairseqDataclass):
    factor_lr_scale: float = field(
        default=0.1, metadata={"help": "learning rate of the factors, relative to --lr"}
    )
    bias_lr_scale: float = field(
        default=1.0, metadata={"help": "learning rate of a KRU's biases, relative to --lr"}
    )
    weight_decay: float = field(default=0.0, metadata={"help": "weight decay"})
    lr: List[float] = II("optimization.lr")


@dataclass
class KronRMSpropConfig(FactoredConfig):
    rmsprop_decay: float = field(
        default=0.9, metadata={"help": "decay of the mean square of the gradient"}
    )
    rmsprop_eps: float = field(default=1e-8, metadata={"help": "added to the root mean square"})


@dataclass
class KronAdamConfig(FactoredConfig):
    kron_adam_betas: List[float] = field(
        default_factory=lambda: [0.9, 0.999], metadata={"help": "Adam's betas, as 0.9,0.999"}
    )
    kron_adam_eps: float = field(default=1e-8, metadata={"help": "Adam's epsilon"})


def _require_range(cfg: FactoredConfig, name: str, end: float, range_: str) -> None:
    """Raise a ValueError unless an option, or each value of a list, is from 0 to below `end`."""
    value = getattr(cfg, name)
    numbers = [value] if isinstance(value, (int, float)) else value
    if not all(0 <= number < end for number in numbers):
        raise ValueError(f"--{name.replace('_', '-')}={value}: must be {range_}")


class FactoredOptimizer(FairseqOptimizer):
    """The groups of `parameter_groups`, with the rate --lr for unmarked parameters."""

    def __init__(self, cfg: FactoredConfig, params: List[torch.nn.Parameter]) -> None:
        super().__init__(cfg)
        for name in ("factor_lr_scale", "bias_lr_scale", "weight_decay"):
            _require_range(cfg, name, MOST, "0 or more, and below 1e6")
        groups = parameter_groups(params, 1.0, cfg.factor_lr_scale, cfg.bias_lr_scale)
        if len(params) == 1:
            raise ValueError(
                "--factor-lr-scale: --fp16 has flattened all parameters into one, so the factors"
                " cannot be told apart; add --fp16-no-flatten-grads"
            )
        self.scales = [group.pop("lr") for group in groups]
        # In half precision fairseq trains float32 copies of a model's parameters. Only these copies
        # have a gradient already.
        self.masters = [p for p in params if p.grad is not None]
        self._optimizer = self.make(groups)
        self.set_lr(cfg.lr[0])

    def make(self, groups: List[dict]) -> torch.optim.Optimizer:
        """torch's optimiser over these groups."""
        raise NotImplementedError

    def zero_grad(self) -> None:
        for p in self.params:
            p.grad = None

    def get_lr(self) -> float:
        """The rate of unmarked parameters, which may all be frozen."""
        lr, scale = self.param_groups[0]["lr"], self.scales[0]
        return lr / scale if scale else lr

    def set_lr(self, lr: float) -> None:
        for group, scale in zip(self.param_groups, self.scales, strict=True):
            group["lr"] = lr * scale

    def state_dict(self) -> Dict[str, Any]:
        """torch's, and in half precision the float32 parameters: fairseq saves only the model's
        rounded ones."""
        state = super().state_dict()
        if self.masters:
            state["fp32_params"] = [p.detach() for p in self.masters]
        return state

    def load_state_dict(self, state_dict: Dict[str, Any], optimizer_overrides=None) -> None:
        super().load_state_dict(state_dict, optimizer_overrides)
        self.set_lr(self.get_lr())
        for p, saved in zip(self.masters, state_dict.get("fp32_params", ()), strict=False):
            p.data.copy_(saved)

    @property
    def optimizer_config(self) -> dict:
        return {"lr": self.cfg.lr[0], "weight_decay": self.cfg.weight_decay}


@register_optimizer("kron_rmsprop", dataclass=KronRMSpropConfig)
class KronRMSprop(FactoredOptimizer):
    """torch.optim.RMSprop, which fairseq lacks."""

    def make(self, groups: List[dict]) -> torch.optim.Optimizer:
        cfg = self.cfg
        _require_range(cfg, "rmsprop_decay", 1, "at least 0 and below 1")
        _require_range(cfg, "rmsprop_eps", MOST, "0 or more, and below 1e6")
        return torch.optim.RMSprop(
            groups,
            alpha=cfg.rmsprop_decay,
            eps=cfg.rmsprop_eps,
            weight_decay=cfg.weight_decay,
            foreach=True,
        )


@register_optimizer("kron_adam", dataclass=KronAdamConfig)
class KronAdam(FactoredOptimizer):
    """torch.optim.Adam."""

    def make(self, groups: List[dict]) -> torch.optim.Optimizer:
        cfg = self.cfg
        if len(cfg.kron_adam_betas) != 2:
            raise ValueError(f"--kron-adam-betas={cfg.kron_adam_betas}: must be two, as 0.9,0.999")
        _require_range(cfg, "kron_adam_betas", 1, "at least 0 and below 1")
        _require_range(cfg, "kron_adam_eps", MOST, "0 or more, and below 1e6")
        return torch.optim.Adam(
            groups,
            betas=tuple(cfg.kron_adam_betas),
            eps=cfg.kron_adam_eps,
            weight_decay=cfg.weight_decay,
            fused=True,
        )
