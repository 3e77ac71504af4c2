"""List the data sets, with their files, addresses and licences."""

from argparse import ArgumentParser, Namespace


def arguments(parser: ArgumentParser) -> None:
    pass


def run(args: Namespace) -> None:
    from ..datasets import overview

    print(overview())
