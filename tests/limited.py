"""fairseq-train on a disk that takes no file larger than BYTES: `limited BYTES OPTION …`."""

import resource
import sys

from fairseq_cli.train import cli_main


def main():
    _, size, *sys.argv[1:] = sys.argv
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), int(size)))
    cli_main()
