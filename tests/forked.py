"""Run commands of fairseq and of ours without their five seconds of start-up: a process that has
imported fairseq forks them.

A JSON line of standard input is a list of commands to run at once, each with `module`, `args`,
`cwd`, `env` and `output`, the file for what it prints. A line of standard output answers with their
exit statuses, negative for a signal.

The only argument is the number of a socket that listens: a connection is one such command, with
three streams of its own instead of `output` (ask.py).
"""

import importlib
import json
import logging
import os
import select
import signal
import socket
import sys

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # output of imports and commands is not an answer

import fairseq_cli.train  # noqa: E402, F401
import matplotlib.figure  # noqa: E402, F401
import torch._dynamo  # noqa: E402

SECONDS = 300  # a command that hangs ends after them


def work(module, args, cwd, env, output=None, streams=()):
    """Run a command to its end; this does not return."""
    signal.alarm(SECONDS)
    if output:
        stream = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        streams = (0, stream, stream)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(cwd)
    os.environ.update(env)
    # fairseq reads this when it is imported.
    logging.getLogger().setLevel(os.environ.get("LOGLEVEL", "INFO").upper())
    if not module.startswith("fairseq_cli."):
        logging.getLogger().handlers.clear()  # made by fairseq's import
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


def run(commands):
    """The exit statuses of commands that run at once."""
    pids = [fork(command) for command in commands]
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def answer(connection):
    """Run the command that a connection asks for."""
    content, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    while part := connection.recv(1 << 20):
        content += part
    (status,) = run([{**json.loads(content), "streams": streams}])
    for stream in streams:
        os.close(stream)
    connection.sendall(str(status if status >= 0 else 128 - status).encode())


if __name__ == "__main__":
    torch.set_num_threads(1)
    with socket.socket(fileno=int(sys.argv[1])) as listener:
        while True:
            ready, _, _ = select.select([sys.stdin, listener], [], [])
            if listener in ready:
                with listener.accept()[0] as connection:
                    answer(connection)
            elif line := sys.stdin.readline():  # one at a time, so that none waits unseen
                print(json.dumps(run(json.loads(line))), file=answers, flush=True)
            else:
                break
