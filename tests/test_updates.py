"""Less work in an update leaves its numbers as they are."""

from enum import Enum
from types import SimpleNamespace

import pytest
import torch
from fairseq.trainer import Trainer
from omegaconf import DictConfig, OmegaConf

import kron_plugin

kron_plugin.register()

Colour = Enum("Colour", "RED")
OPTIONS = {
    **{"whole": 1, "real": 0.5, "flag": True, "none": None, "text": "x", "choice": Colour.RED},
    **{"missing": "???", "list": [1], "group": {"deep": 2}, "no_group": DictConfig(None)},
    **{"other": "${whole}", "other_group": "${group}", "broken": "${nothing}"},
    "a_missing_group": DictConfig("???"),
}


@pytest.mark.parametrize("struct", [True, False])
def test_options_read_as_before(struct):
    cfg = OmegaConf.create(OPTIONS)
    OmegaConf.set_struct(cfg, struct)

    def result(read, key):
        try:
            return read(cfg, key)
        except Exception as error:
            return type(error), str(error)

    read = DictConfig.__getattr__
    for key in (*OPTIONS, "absent", "__name__"):
        have, expected = result(read, key), result(read.__wrapped__, key)
        assert have is expected or have == expected
        assert type(have) is type(expected)
    assert cfg.group is read.__wrapped__(cfg, "group")
    cfg.whole = 3
    assert cfg.whole == cfg.other == 3


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_update_has_the_same_random_numbers(device):
    cfg = SimpleNamespace(common=SimpleNamespace(seed=3))
    trainer = SimpleNamespace(device=torch.device(device), cfg=cfg, get_num_updates=lambda: 4)
    torch.manual_seed(0)
    Trainer._set_seed(trainer)
    have = torch.rand(5)
    torch.manual_seed(0)
    Trainer._set_seed.__wrapped__(trainer)
    assert torch.equal(have, torch.rand(5))
