"""fairseq-train that does not survive a call of a function: `killed FUNCTION NUMBER OPTION …`.

SIGKILL ends it in the so many-th call, with the file that the function writes half written.
"""

import io
import itertools
import os
import pkgutil
import signal
import sys
from pathlib import Path

import torch
from fairseq_cli.train import cli_main

torch_save = torch.save


def _half_a_copy(source, target):
    content = Path(source).read_bytes()
    Path(target).write_bytes(content[: len(content) // 2])


def _half_a_save(content, file):
    buffer = io.BytesIO()
    torch_save(content, buffer)
    file.write(buffer.getvalue()[: buffer.tell() // 2])
    file.flush()


UNFINISHED = {"shutil.copyfile": _half_a_copy, "torch.save": _half_a_save}


def kill_in(name, number):
    owner, _, attribute = name.rpartition(".")
    owner = pkgutil.resolve_name(owner)
    original, calls = getattr(owner, attribute), itertools.count(1)

    def call(*args, **kwargs):
        if next(calls) == number:
            UNFINISHED.get(name, lambda *args: None)(*args)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, attribute, call)


def main():
    _, name, number, *sys.argv[1:] = sys.argv
    kill_in(name, int(number))
    cli_main()
