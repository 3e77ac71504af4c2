"""The toolkit's commands without their five seconds of start-up: forked from a process that has
imported it all.

A JSON line of standard input starts one run: a list of workers, each with `args`, `log`, the
`command` if not fairseq-train and, to be killed, `kill`: the name of a function and which of its
calls is not survived. A JSON line of standard output answers with the workers' exit statuses,
negative for a signal.
"""

import io
import itertools
import json
import os
import pkgutil
import signal
import sys
from argparse import Namespace
from pathlib import Path

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what imports and runs say is no answer

import fairseq_cli.train  # noqa: E402, F401
import torch  # noqa: E402
from fairseq.utils import import_user_module  # noqa: E402

SECONDS = 100  # after which a run that hangs ends


def _half_a_copy(source, target):
    content = Path(source).read_bytes()
    Path(target).write_bytes(content[: len(content) // 2])


def _half_a_save(content, file):
    buffer = io.BytesIO()
    torch_save(content, buffer)
    file.write(buffer.getvalue()[: buffer.tell() // 2])
    file.flush()


torch_save = torch.save
UNFINISHED = {"shutil.copyfile": _half_a_copy, "torch.save": _half_a_save}


def kill_in(name, number):
    """Have SIGKILL end this process in the so many-th call of a function, its file half written."""
    owner, _, attribute = name.rpartition(".")
    owner = pkgutil.resolve_name(owner)
    original, calls = getattr(owner, attribute), itertools.count(1)

    def call(*args, **kwargs):
        if next(calls) == number:
            UNFINISHED.get(name, lambda *args: None)(*args)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, attribute, call)


def work(args, log, command="fairseq_cli.train:cli_main", kill=None):
    """The life of a worker; does not return."""
    signal.alarm(SECONDS)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if kill:
        kill_in(*kill)
    sys.argv = [f"fairseq-{command[12:].split(':')[0].replace('_', '-')}", *args]
    status = 0
    try:
        pkgutil.resolve_name(command)()
    except SystemExit as end:
        status = int(bool(end.code))
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def fork(worker):
    pid = os.fork()
    if pid == 0:
        work(**worker)
    return pid


if __name__ == "__main__":
    torch.set_num_threads(1)
    import_user_module(Namespace(user_dir=sys.argv[1]))
    for line in sys.stdin:
        pids = [fork(worker) for worker in json.loads(line)]
        statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        print(json.dumps(statuses), file=answers, flush=True)
