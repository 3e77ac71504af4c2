"""Commands of the toolkit and of ours without their five seconds of start-up: forked from a process
that has imported the toolkit.

A JSON line of standard input is a list of commands to run at once, each with `module`, `args`,
`cwd`, `env` and `output`, the file for what it prints. A line of standard output answers with their
exit statuses, negative for a signal.
"""

import importlib
import json
import logging
import os
import signal
import sys

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what imports and commands say is no answer

import fairseq_cli.train  # noqa: E402, F401
import matplotlib.figure  # noqa: E402, F401
import torch._dynamo  # noqa: E402

SECONDS = 300  # after which a command that hangs ends


def work(module, args, cwd, env, output):
    """The life of a command; does not return."""
    signal.alarm(SECONDS)
    stream = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    os.chdir(cwd)
    os.environ.update(env)
    if not module.startswith("fairseq_cli."):
        logging.getLogger().handlers.clear()  # the toolkit's, which it makes on import
    main = {"fairseq_cli": "cli_main"}.get(module.partition(".")[0], "main")
    sys.argv = [module, *args]
    status = 1
    try:
        result = getattr(importlib.import_module(module), main)()
        status = result if isinstance(result, int) else 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def fork(command):
    pid = os.fork()
    if pid == 0:
        work(**command)
    return pid


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        pids = [fork(command) for command in json.loads(line)]
        statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        print(json.dumps(statuses), file=answers, flush=True)
