"""Options and checks that several subcommands share. Nothing here imports torch at module level."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from dflash.devices import is_device_name
from dflash.embedded import EMBEDDED_NAME
from dflash.errors import UserError

if TYPE_CHECKING:
    from dflash.decoding.engine import Engine
    from dflash.decoding.sampling import Sampling
    from dflash.target import TargetModel


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, but not the empty ones: their help text says what leaving them out means."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or isinstance(action.default, bool) or action.default in ("", []):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argparse parser whose mistakes are one sentence, and whose help shows every default."""

    def __init__(self, *args, **kwargs) -> None:
        kwargs.setdefault("formatter_class", _Help)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def parse_known_args(self, args=None, namespace=None):
        """As argparse does, but `section.key=value` may stand anywhere, and what is left over is refused here."""
        parsed, rest = super().parse_known_args(args, namespace)
        if "overrides" in parsed and not any(word.startswith("-") for word in rest):
            self._sort_positionals(parsed, rest)
            rest = []
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return parsed, rest

    def _sort_positionals(self, parsed: argparse.Namespace, rest: list[str]) -> None:
        """argparse fills positionals only up to the first option; the first that is no setting is the config."""
        subject = self._get_positional_actions()[0].dest
        given = [word for word in (getattr(parsed, subject), *parsed.overrides, *rest) if word is not None]
        plain = next((i for i, word in enumerate(given) if not re.match(r"\w+(\.\w+)*=", word)), None)
        if plain is not None:
            setattr(parsed, subject, given.pop(plain))
            parsed.overrides = given

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog.split()[0]}: {message.rstrip('.')}; see '{self.prog} --help'.\n")


def whole_number(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """An argparse type: a whole number of at least `minimum`, and at most `maximum` where that is given."""
    allowed = f"of {minimum:,} or more" if maximum is None else f"from {minimum:,} to {maximum:,}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < minimum or (maximum is not None and value > maximum):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {allowed}")
        return value

    return parse


def number_between(low: float, high: float) -> Callable[[str], float]:
    """An argparse type: a number from `low` to `high`, both included."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low:g} to {high:g}")
        return value

    return parse


def device_name(text: str) -> str:
    """An argparse type: the name of a torch device, be it here or not."""
    if not is_device_name(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no device: choose auto, cpu, cuda or one GPU such as cuda:1")
    return text


def words(text: str) -> str:
    """An argparse type: text that is not empty."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty: give some text")
    return text


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    """--target, --dtype, --device, --threads."""
    group = parser.add_argument_group("model and machine")
    group.add_argument(
        "--target", metavar="T", default=EMBEDDED_NAME, help="the embedded target's name, a Hugging Face id or a folder"
    )
    group.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of target and draft")
    group.add_argument(
        "--device", type=device_name, default="auto", help="auto (CUDA if there is one), cpu, cuda, cuda:1, ..."
    )
    group.add_argument("--threads", type=whole_number(1), metavar="N", help="CPU threads; left out, torch's own choice")


def add_decoding_options(parser: argparse.ArgumentParser, *, several_drafts: bool = False) -> None:
    """--draft (with `several_drafts` a list, None when left out), --block-size, --temperature, --rule, --seed."""
    group = parser.add_argument_group("decoding")
    group.add_argument(
        "--draft",
        metavar="D",
        action="append" if several_drafts else "store",
        default=None if several_drafts else "default",
        help="a draft folder; left out, the one shipped for the target; may be repeated"
        if several_drafts
        else "a draft folder, or the one shipped for the target",
    )
    group.add_argument(
        "--block-size",
        type=whole_number(2),
        metavar="B",
        help="slots in a block, the last known token included; left out, the draft's own",
    )
    group.add_argument("--temperature", type=number_between(0, 100), default=0.0, help="0 is greedy")
    group.add_argument(
        "--rule",
        choices=("target", "rejection"),
        help="when sampling: accept while the draft equals the target's sample (target, the default), or full "
        "rejection sampling",
    )
    group.add_argument("--seed", type=whole_number(0), help="of the sampling; left out, 0")


def use_machine(args: argparse.Namespace) -> str:
    """Apply --threads and return the device that --device names.

    Raises:
        UserError: no such device here.
    """
    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    return pick_device(args.device)


def pick_device(name: str) -> str:
    """The torch device behind a name: "auto" is CUDA if there is one, else the CPU.

    Raises:
        UserError: no such device here.
    """
    if name == "auto":
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    check_device(name)
    return name


def check_device(name: str) -> None:
    """Refuse a torch device that cannot compute here; "auto" is whatever there is.

    Raises:
        UserError: no such device, or none on this machine.
    """
    if name in ("cpu", "auto"):
        return  # always there, and torch need not be imported to know
    import torch

    try:
        torch.zeros(1, device=name).item()  # the value has to come back: 'meta' is a device, but holds none
    except (RuntimeError, AssertionError) as error:
        available = ", ".join(["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])
        raise UserError(f"Device {name!r} cannot be used here: choose one of {available}.") from error


def check_writable(path: Path) -> None:
    """Refuse an output path now rather than after the work: its folder is made, and the file opened once.

    Raises:
        UserError: the folder cannot be made or the file not be written.
    """
    existed = path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab"):
            pass
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror}; give a file in a folder you may write to."
        ) from error
    if not existed:
        path.unlink()


def sampling_of(args: argparse.Namespace) -> "Sampling":
    """The `Sampling` that --temperature, --rule and --seed describe.

    Raises:
        UserError: a rule or a seed without a temperature, which is greedy and draws nothing.
    """
    for option, given in (("--rule", args.rule), ("--seed", args.seed)):
        if given is not None and args.temperature == 0:
            raise UserError(f"{option} has no effect at temperature 0, which is greedy: add --temperature, or drop it.")

    from dflash.decoding.sampling import Sampling

    return Sampling(temperature=args.temperature, rule=args.rule or "target", seed=args.seed or 0)


def load_target(args: argparse.Namespace) -> "TargetModel":
    """The target that --target, --dtype, --device and --threads describe, without a bar for reading local weights.

    Raises:
        UserError: no such target or device.
    """
    check_target(args)

    from dflash.target import TargetModel

    device = use_machine(args)
    hide_loading_bars()
    return TargetModel.load(args.target, dtype=args.dtype, device=device)


def hide_loading_bars() -> None:
    """No bars for reading local weights; a download still shows its own."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    show_downloads = not are_progress_bars_disabled()
    disable_progress_bar()
    if show_downloads:
        enable_progress_bars()  # the line above takes the bars of downloads away as well


def check_target(args: argparse.Namespace) -> None:
    """Refuse a --target that cannot be had, without importing torch.

    Raises:
        UserError: there is no such target.
    """
    from dflash.target_source import check_target_reachable

    check_target_reachable(args.target)


def check_models(args: argparse.Namespace) -> None:
    """Refuse --target, --draft and --block-size where small files already tell, without importing torch.

    Raises:
        UserError: no such target or draft, or they do not fit one another.
    """
    from dflash.model.draft_folder import check_draft

    check_target(args)
    check_draft(args.draft, args.target, getattr(args, "block_size", None))


def load_engine(args: argparse.Namespace) -> "Engine":
    """The decoding engine with the target and draft that the options name.

    Raises:
        UserError: no such target, draft or device, or the draft was made for another target.
    """
    from dflash.decoding.engine import Engine
    from dflash.model.loading import load_draft

    target = load_target(args)
    return Engine(target, load_draft(args.draft, target))
