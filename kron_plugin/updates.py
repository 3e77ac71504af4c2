"""Changes to fairseq that take time out of every update."""

from functools import wraps
from typing import Any, Callable

import torch

PLAIN = (bool, int, float)


def seed_the_cpu_alone(set_seed: Callable) -> Callable:
    """Seed the generator of the device that trains. torch.manual_seed also seeds every kind of
    accelerator, and writes down the stack for each one that this machine lacks."""

    @wraps(set_seed)
    def seed(self):
        if self.device.type != "cpu":
            return set_seed(self)
        torch.default_generator.manual_seed(self.cfg.common.seed + self.get_num_updates())

    return seed


def read_plain_values_at_once(read: Callable) -> Callable:
    """Return a number, or a group of options, without the checks that only other values need."""
    from omegaconf import DictConfig

    @wraps(read)
    def read_option(self, key: str) -> Any:
        options = self.__dict__["_content"]
        node = options.get(key) if type(options) is dict else None
        if node is not None:
            fields = node.__dict__
            if type(fields.get("_val")) in PLAIN:
                return fields["_val"]
            if type(node) is DictConfig and type(fields["_content"]) is dict:
                return node
        return read(self, key)

    return read_option
