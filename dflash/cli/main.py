"""The `dflash` command: one subcommand per file; torch and transformers are imported only by the one that runs."""

import argparse
import os
import sys
from collections.abc import Sequence

from dflash.cli import (
    benchmark,
    capture,
    check,
    compare,
    data,
    difference,
    doctor,
    engines,
    evaluate,
    generate,
    patch,
    plan,
    regenerate,
    serve_target,
    synthesize,
    train,
)
from dflash.cli.options import Parser
from dflash.errors import UserError

COMMANDS = (
    generate,
    compare,
    evaluate,
    difference,
    benchmark,
    synthesize,
    regenerate,
    data,
    capture,
    plan,
    train,
    check,
    engines,
    serve_target,
    patch,
    doctor,
)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line. Each subcommand's module adds its parser, with `run` and `kept` as defaults."""
    parser = Parser(
        prog="dflash",
        description="Train, measure and understand DFlash drafts for speculative decoding.",
        epilog="To start: dflash generate --prompt 'Why is the sky blue?'",
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, dest="command")
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 bad input or a full disk, 130 interrupted, others as the command says."""
    # Their progress bars and advice belong to libraries, not to this tool; a download still shows its own bar.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    args = build_parser().parse_args(argv)
    try:
        code = args.run(args)
        sys.stdout.flush()  # here, where a full disk or a gone reader can still be told apart from success
        return code
    except UserError as error:
        print(f"dflash: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\ndflash: interrupted; {args.kept}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _settle_stdout()  # the reader of our output (head, less) left
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or " ".join(str(error).split())
        print(f"dflash: {where}{reason}; {args.kept}", file=sys.stderr)
        _settle_stdout()
        return 2


def _settle_stdout() -> None:
    """Write out what was printed, or drop it: Python would complain once more when it flushes at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
