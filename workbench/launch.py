"""`python app.py`: read the options, refuse bad ones in a sentence, serve."""

import argparse
import ipaddress
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from dflash.cli.options import Parser, check_target, device_name, whole_number
from dflash.embedded import EMBEDDED_NAME
from dflash.errors import UserError
from dflash.model.draft_folder import check_draft

AUTH_VARIABLE = "DFLASH_AUTH"


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the workbench until interrupted; returns the exit code (2 for bad input)."""
    options = _parser().parse_args(argv)
    secret = os.environ.pop(AUTH_VARIABLE, "")  # taken out: no job that is started from here is to know it
    try:
        auth = parse_auth(options.auth or secret)
        check_host(options.host, auth)
        check_port(options.host, options.port)
        check_target(options)
        if options.draft:
            check_draft(options.draft, options.target)
        check_runs(options.runs)
        demo = serve(options, auth)
    except UserError as error:
        print(f"app.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("app.py: stopped before it was ready.", file=sys.stderr)
        return 130
    print(f"DFlash Workbench: {demo.local_url}  (Ctrl+C stops it)", flush=True)
    demo.block_thread()
    return 0


def serve(options: argparse.Namespace, auth: tuple[str, str] | None):
    """Start the server in the background and return the running app."""
    # Heavy imports only once the options are known to be good.
    from workbench import theme
    from workbench.app import build_app
    from workbench.bench import Bench

    bench = Bench(options.target, options.draft, Path(options.runs), device=options.device, dtype=options.dtype)
    demo = build_app(bench)
    demo.queue(default_concurrency_limit=None)
    demo.launch(
        server_name=options.host,
        server_port=options.port,
        inbrowser=options.browser,
        auth=auth,
        share=False,
        ssr_mode=False,
        run_history=False,
        quiet=True,
        show_error=True,
        prevent_thread_lock=True,
        footer_links=[],
        max_file_size=32 << 20,  # the most that a page takes; more would only fill the disk
        theme=theme.theme(),
        head=theme.head(),
    )
    return demo


def parse_auth(text: str) -> tuple[str, str] | None:
    """USER:PASSWORD as a pair, None when nothing was given."""
    if not text:
        return None
    user, separator, password = text.partition(":")
    if not (separator and user and password):
        raise UserError(f"--auth needs the form USER:PASSWORD (also read from ${AUTH_VARIABLE}).")
    return user, password


def check_host(host: str, auth: tuple[str, str] | None) -> None:
    """Refuse to serve beyond this machine without a password."""
    if auth is None and not _is_loopback(host):
        raise UserError(
            f"--host {host} is open to other machines: add --auth USER:PASSWORD or set ${AUTH_VARIABLE}, "
            "or serve on 127.0.0.1."
        )


def check_runs(runs: str) -> None:
    """Refuse a runs folder that is a file, before the page says so click by click."""
    there = Path(runs).absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise UserError(f"--runs {runs!r} cannot be a folder, since {str(there)!r} is a file: give another one.")


def check_port(host: str, port: int) -> None:
    """Refuse a port that is taken or not a port."""
    if not 1 <= port <= 65535:
        raise UserError(f"--port {port} is no port: choose one from 1 to 65535.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror as error:
        raise UserError(f"--host {host!r} is no address of this machine: use 127.0.0.1.") from error
    except OSError as error:
        raise UserError(f"Port {port} on {host} cannot be used ({error.strerror}): choose another with --port.") from error


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="app.py", description="Open the DFlash workbench in a browser.")
    parser.add_argument("--port", type=whole_number(1), default=7860, help="port to serve on")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on; others than this machine need --auth")
    parser.add_argument("--no-browser", dest="browser", action="store_false", help="do not open a browser tab")
    parser.add_argument("--runs", default="runs", metavar="DIR", help="folder of training runs")
    parser.add_argument(
        "--auth", default="", metavar="USER:PASSWORD", help=f"ask for a login (or set ${AUTH_VARIABLE}); left out, none"
    )
    parser.add_argument(
        "--target", metavar="T", default=EMBEDDED_NAME, help="the embedded target's name, a Hugging Face id or a folder"
    )
    parser.add_argument("--draft", default="", metavar="D", help="draft folder to open with; left out, the shipped one")
    parser.add_argument(
        "--device", type=device_name, default="auto", help="auto (CUDA if there is one), cpu, cuda, cuda:1, ..."
    )
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of target and draft")
    return parser
