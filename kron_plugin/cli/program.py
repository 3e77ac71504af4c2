"""The frame of `kron-eval` and `kron-data`: a table of commands, and errors in one line."""

import argparse
import logging
import os
import sys
from difflib import get_close_matches
from types import ModuleType
from typing import Dict, List, NoReturn, Optional, Union

from .. import __version__
from ..packages import missing_package
from ..plugins import import_user_dir
from ..published import find_checkpoint
from .arguments import check_files


class Help(argparse.HelpFormatter):
    """Shows for each option that it is required, or its default."""

    def _get_help_string(self, action: argparse.Action) -> Optional[str]:
        if action.required and action.option_strings:
            return f"{action.help} (required)"
        if not action.default or action.default == argparse.SUPPRESS:
            return action.help
        return f"{action.help} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """Raises a ValueError of one line for a command line that it cannot read."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


def run(
    program: str,
    commands: Dict[str, ModuleType],
    argv: Optional[List[str]] = None,
    short_for: Optional[str] = None,
) -> int:
    """Run a command line; its status: 0 on success, 2 on wrong input.

    A command is a module: its docstring is its help, `arguments(parser)` adds its arguments, and
    `run(args)` does its work. `run` imports what it needs: fairseq alone takes five seconds.

    Args:
        program: its name, for messages.
        short_for: the command to run if the command line begins with a file.
    """
    argv = sys.argv[1:] if argv is None else argv
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("kron_plugin").setLevel(logging.INFO)
    try:
        args = _parse(program, commands, short_for, _with_command(argv, commands, short_for))
        check_files(args)
        if getattr(args, "user_dir", None):
            import_user_dir(args.user_dir)
        args.run(args)
        sys.stdout.flush()
        return 0
    except BrokenPipeError:  # as in `kron-data list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # the status of programs that SIGPIPE ends
    except ModuleNotFoundError as error:
        reason: Union[str, Exception, None] = missing_package(error)
        if reason is None:
            raise
    except OSError as error:
        is_plain = error.filename is not None and error.strerror is not None
        reason = f"{error.filename}: {error.strerror}" if is_plain else error
    except ValueError as error:
        reason = error
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    print(f"{program}: {reason}", file=sys.stderr)
    return 2


def _parse(
    program: str, commands: Dict[str, ModuleType], short_for: Optional[str], argv: List[str]
) -> argparse.Namespace:
    more = f"{program} COMMAND --help shows the options of a command."
    if short_for:
        more += f" {program} FILE … is short for {program} {short_for} FILE …"
    parser = Parser(prog=program, epilog=more)
    version = f"kron-plugin {__version__}"
    parser.add_argument("--version", action="version", version=version, help="print the version")
    rows = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, module in commands.items():
        about = module.__doc__ or name
        command = rows.add_parser(
            name, help=about.splitlines()[0], description=about, formatter_class=Help
        )
        module.arguments(command)
        command.set_defaults(run=module.run, parser=command)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return args


def _with_command(
    argv: List[str], commands: Dict[str, ModuleType], short_for: Optional[str]
) -> List[str]:
    """The command line, with its command added if it is left out.

    Raises:
        ValueError: the first word is neither a command nor, where a file is allowed, a file.
    """
    word = argv[0] if argv else "--help"
    if word in ("-h", "--help", "--version", *commands) or (word[0:1] == "-" and not short_for):
        return argv
    looks_like_a_file = find_checkpoint(word).exists() or os.sep in word or "." in word
    if short_for and (word.startswith("-") or looks_like_a_file):
        return [short_for, *argv]
    near = [repr(name) for name in get_close_matches(word, commands)]
    advice = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(commands)}"
    raise ValueError(f"no command {word!r}{' and no such file' if short_for else ''}; {advice}")
