"""Ask forked.py to run a command here: `python -IS ask.py SOCKET MODULE ARGUMENT …`."""

import json
import os
import socket
import sys

with socket.socket(socket.AF_UNIX) as server:
    server.connect(sys.argv[1])
    words = {"module": sys.argv[2], "args": sys.argv[3:], "cwd": os.getcwd()}
    socket.send_fds(server, [json.dumps({**words, "env": dict(os.environ)}).encode()], [0, 1, 2])
    server.shutdown(socket.SHUT_WR)
    sys.exit(int(server.recv(16) or 1))
