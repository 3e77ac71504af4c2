"""fairseq-train that ends at a call of a function: `killed HOW FUNCTION NUMBER OPTION …`.

In call NUMBER, SIGKILL ends it, and the file that the function writes is half written. If HOW is
`stop`, SIGSTOP halts it, and SIGKILL ends it long after the others must have noticed. If HOW is
`fail`, it raises an error.
"""

import io
import itertools
import os
import pkgutil
import signal
import sys
import time
from pathlib import Path

import torch
from fairseq_cli.train import cli_main

torch_save = torch.save

STOPPED = 12  # seconds from SIGSTOP to SIGKILL


def _half_a_copy(source, target):
    content = Path(source).read_bytes()
    Path(target).write_bytes(content[: len(content) // 2])


def _half_a_save(content, file):
    buffer = io.BytesIO()
    torch_save(content, buffer)
    file.write(buffer.getvalue()[: buffer.tell() // 2])
    file.flush()


UNFINISHED = {"shutil.copyfile": _half_a_copy, "torch.save": _half_a_save}


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def stop():
    watched = os.getpid()
    if os.fork() == 0:
        time.sleep(STOPPED)
        print("killed", flush=True)
        os.kill(watched, signal.SIGKILL)
        os._exit(0)
    os.kill(watched, signal.SIGSTOP)


def fail():
    raise KeyError("for a test")


def end_in(how, name, number):
    owner, _, attribute = name.rpartition(".")
    owner = pkgutil.resolve_name(owner)
    original, calls = getattr(owner, attribute), itertools.count(1)

    def call(*args, **kwargs):
        if next(calls) == number:
            UNFINISHED.get(name, lambda *args: None)(*args)
            {"kill": kill, "stop": stop, "fail": fail}[how]()
        return original(*args, **kwargs)

    setattr(owner, attribute, call)


def main():
    _, how, name, number, *sys.argv[1:] = sys.argv
    end_in(how, name, int(number))
    cli_main()
