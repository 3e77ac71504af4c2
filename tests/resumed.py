"""fairseq-train, once straight and once killed and resumed: `resumed STOPS OPTION …`.

STOPS are numbers of updates, as `3,8`. $CHANGES is JSON that replaces parts of the configuration
that have no command-line options. The folder of --save-dir gets the two runs, `straight` and
`resumed`. All runs are forked after the options are read, because that takes longer than training.
"""

import json
import os
import signal
import sys
from pathlib import Path

from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.trainer import Trainer
from fairseq_cli import train
from omegaconf import OmegaConf


def kill_at(updates):
    """Kill the process at its next update after this many."""
    train_step = Trainer.train_step

    def train_until(trainer, *args, **kwargs):
        if trainer.get_num_updates() == updates:
            os.kill(os.getpid(), signal.SIGKILL)
        return train_step(trainer, *args, **kwargs)

    Trainer.train_step = train_until


def run(cfg, name, stop=None):
    """Train in a separate process; return its exit status."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(300)
        cfg.checkpoint.save_dir = str(Path(cfg.checkpoint.save_dir) / name)
        if stop is not None:
            kill_at(stop)
        try:
            train.main(cfg)
            status = 0
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main():
    _, stops, *sys.argv[1:] = sys.argv
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser()))
    for part, value in json.loads(os.environ.get("CHANGES", "{}")).items():
        OmegaConf.update(cfg, part, value, merge=False, force_add=True)
    assert run(cfg, "straight") == 0
    for stop in stops.split(","):
        assert run(cfg, "resumed", int(stop)) == -signal.SIGKILL
    assert run(cfg, "resumed") == 0
