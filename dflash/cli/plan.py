"""`dflash plan`: which GPUs serve and which train, how large the store is, how long an epoch takes."""

import argparse
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from dflash.cli.options import number_between, whole_number
from dflash.devices import MOST_GPUS
from dflash.errors import UserError

if TYPE_CHECKING:
    from dflash.online.planner import PipelinePlan
    from dflash.online.rates import Rate

_RATES = {  # option -> (name in `Rates`, what it is)
    "--prefill-rate": ("prefill", "target tokens/s that one serving GPU prefills"),
    "--train-rate": ("training", "tokens/s that one training GPU puts through when it never waits"),
    "--link-rate": ("link", "GB/s that one rank can read from the store"),
    "--length": ("length", "tokens of a conversation, on average"),
    "--generate-rate": ("generation", "answer tokens/s that one serving GPU generates"),
    "--answer-length": ("answer", "tokens of a regenerated answer, on average"),
}


_CENTURY = 100 * 365.25 * 86400  # seconds
_LIMITS = {"servers": "the servers", "trainer": "the trainer", "link": "the way from the store"}


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "plan",
        help="divide GPUs between servers and trainer",
        description="Plan online training: the split of the GPUs, the store, the time of an epoch. Rates are stated, "
        "read from finished runs (--run), or assumed; every number says which. The config is taken as with "
        "features.source=online. Nothing is loaded; docs/online.md has the formulas.",
        epilog="Example: dflash plan qwen3-8b-8xh100 --gpus 8 --prefill-rate 30000",
    )
    parser.add_argument("config", help="YAML file, or the name of a shipped recipe")
    parser.add_argument("overrides", nargs="*", metavar="SECTION.KEY=VALUE", help="settings that replace the file's")
    parser.add_argument("--gpus", type=whole_number(2, MOST_GPUS), default=8, metavar="N", help="GPUs to divide")
    parser.add_argument(
        "--serving", type=whole_number(1, MOST_GPUS), metavar="N", help="GPUs that serve; left out, the best number"
    )
    parser.add_argument(
        "--conversations", type=whole_number(1, 10**12), metavar="N", help="to train on; left out, counted where "
        "data.train holds files"
    )
    parser.add_argument("--json", action="store_true", help="print the plan as one JSON object")
    rates = parser.add_argument_group("rates")
    rates.add_argument(
        "--run", dest="runs", type=Path, action="append", default=[], metavar="RUN",
        help="a run folder whose metrics tell rates; may be repeated",
    )
    for option, (name, what) in _RATES.items():
        rates.add_argument(option, dest=name, type=number_between(1e-3, 1e12), metavar="X", help=what)
    rates.add_argument("--gpu", choices=("a100", "h100", "h200", "b200"), default="h100", help="for what is assumed")
    parser.set_defaults(run=run, kept="nothing was written.")


def run(args: argparse.Namespace) -> int:
    plan = _plan(args)
    if args.json:
        print(json.dumps(plan.to_dict()))
    else:
        print("\n".join(_lines(plan)))
    return 0


def _plan(args: argparse.Namespace) -> "PipelinePlan":
    """
    Raises:
        UserError: the config is wrong, sizes or a rate are not known, or the GPUs cannot be divided so.
    """
    from dflash.config import parse_config, read_tree
    from dflash.data.sources import count_conversations
    from dflash.online.planner import plan_pipeline
    from dflash.online.rates import complete_rates
    from dflash.recipes import resolve_recipe
    from dflash.target_facts import target_facts
    from dflash.training.draft_size import draft_shape

    path = resolve_recipe(args.config)
    tree = read_tree(path, args.overrides)
    features = tree.setdefault("features", {})
    if isinstance(features, dict):  # whatever else it is, the check of the config says
        features["source"] = "online"
        features.pop("cache", None)
    config = parse_config(tree, repr(str(path)))
    facts = target_facts(config.target.name, config.target.revision)
    shape = draft_shape(config, facts)
    if facts is None or shape is None:
        raise UserError(
            f"The sizes of target {config.target.name!r} or of its draft are not known here: give the target's folder, "
            "download it first, or set draft.intermediate_size."
        )
    conversations = args.conversations
    if conversations is None:
        counted = count_conversations(config.data.train, config.data.limit)
        conversations = counted and max(0, counted - config.data.validation_size) or None
    for option, tokens in (("--length", args.length), ("--answer-length", args.answer)):
        if tokens is not None and tokens > config.data.max_length:
            raise UserError(
                f"{option} {tokens:g} is more than data.max_length = {config.data.max_length}, at which conversations "
                "are cut: state less, or set data.max_length."
            )
    rates = complete_rates(_given(args), config, facts, shape, args.gpu)
    return plan_pipeline(config, facts, rates, args.gpus, serving=args.serving, conversations=conversations)


def _given(args: argparse.Namespace) -> "dict[str, Rate]":
    """The rates that the runs tell, and over them those that were stated."""
    from dflash.online.rates import measured_rates, stated

    given: dict[str, Rate] = {}
    for run_dir in args.runs:
        given |= measured_rates(run_dir)
    for name, _ in _RATES.values():
        value = getattr(args, name)
        if value is not None:
            given[name] = stated(value * (1e9 if name == "link" else 1))
    return given


def _lines(plan: "PipelinePlan") -> Iterator[str]:
    yield from _rate_lines(plan)
    yield ""
    yield from _split_lines(plan)
    yield ""
    yield f"Bytes per token: {plan.bytes_per_token:,}"
    yield (
        f"Store: at least {_size(plan.store_bytes)} for what may be in flight; {_size(plan.segment_bytes)} lent by "
        "each server"
    )
    yield f"Host memory per rank: up to {_size(plan.host_bytes)} of buffers"
    yield f"In flight per rank: {plan.in_flight}; {plan.in_flight_needed} keep the servers busy"
    for what, rows, bound, seconds in (
        ("Epoch", plan.epoch_rows, plan.epoch_rows_are, plan.epoch_seconds),
        ("Run", plan.run_rows, plan.run_rows_are, plan.run_seconds),
    ):
        time = "not known: state --conversations" if seconds is None else f"{_time(seconds)} for {bound} {rows:,} rows"
        yield f"{what}: {time}"
    if plan.regenerate_seconds is not None:
        yield f"Regenerating the answers: {_time(plan.regenerate_seconds)} before the first step"
    for note in plan.notes:
        yield f"Note: {note}"


def _rate_lines(plan: "PipelinePlan") -> Iterator[str]:
    rows = [
        ("target, tokens/s per serving GPU", plan.rates.prefill, 1),
        ("trainer, tokens/s per training GPU", plan.rates.training, 1),
        ("store to rank, GB/s", plan.rates.link, 1e9),
        ("tokens per conversation", plan.rates.length, 1),
    ]
    if plan.regenerate_seconds is not None:
        rows.append(("answers, tokens/s per serving GPU", plan.rates.generation, 1))
        rows.append(("tokens per answer", plan.rates.answer, 1))
    yield "Rates"
    for what, rate, unit in rows:
        yield f"  {what:<36}{rate.value / unit:>12,.{1 if unit > 1 else 0}f}  {rate.origin}"


def _split_lines(plan: "PipelinePlan") -> Iterator[str]:
    best = plan.split
    yield (
        f"Of {plan.gpus} GPUs, {best.serving} serve (servers of {plan.server_gpus}) and {best.training} train: "
        f"{best.tokens_per_s:,.0f} tokens/s"
    )
    yield (
        f"  limited by {_LIMITS[best.limit]}; servers idle {best.server_idle:.0%}, ranks {best.trainer_idle:.0%}, the "
        f"way from the store is used to {plan.link_use:.0%}"
    )
    yield (
        f"  without a pipeline, each GPU doing both at these rates: {plan.alone_tokens_per_s:,.0f} tokens/s at most"
    )
    yield f"  {'serving':>9}{'training':>10}{'tokens/s':>14}  limited by"
    for one in plan.splits:
        mark = "  <-" if one == best else ""
        limit = _LIMITS[one.limit]
        yield f"  {one.serving:>9}{one.training:>10}{one.tokens_per_s:>14,.0f}  {limit}{mark}"


def _size(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _time(seconds: float) -> str:
    if seconds > _CENTURY:
        return f"{seconds / _CENTURY:,.0f} centuries"
    return str(timedelta(seconds=round(seconds)))
