"""`dflash check overfit|leak|layers`: sanity gates before, during and after training."""

import argparse
import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from dflash.cli.options import (
    add_machine_options,
    check_models,
    check_target,
    load_target,
    number_between,
    whole_number,
    words,
)
from dflash.errors import UserError

if TYPE_CHECKING:
    from dflash.checks.layers import Difference, LayersReport
    from dflash.checks.leak import LeakReport
    from dflash.checks.overfit import OverfitPoint, OverfitReport
    from dflash.data.conversations import Conversation
    from dflash.model.draft import DFlashDraft
    from dflash.target import TargetModel

_KEPT = "nothing was written."


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "check",
        help="sanity gates: overfit, leak, layers",
        description="Gates that catch what most often makes a draft bad. Each exits with 0 when it is passed, and with "
        "1, saying why, when it is not.",
    )
    gates = parser.add_subparsers(title="gates", metavar="GATE", required=True, dest="gate")
    _add_overfit(gates)
    _add_leak(gates)
    _add_layers(gates)


def _add_overfit(gates: argparse._SubParsersAction) -> None:
    parser = gates.add_parser(
        "overfit",
        help="train on one conversation until decoding accepts a full block",
        description="Train a new draft on one conversation, answered by the target, until real decoding of its prompt "
        "accepts a full block. On the embedded target and two CPU cores: a minute or two, and some minutes where it "
        "never gets there.",
    )
    text = parser.add_mutually_exclusive_group()
    text.add_argument(
        "--conversations", type=Path, metavar="FILE", help="JSONL; its first conversation is used, or that of --id"
    )
    text.add_argument("--prompt", type=words, metavar="TEXT", help="a question; left out, a built-in one")
    parser.add_argument("--id", metavar="ID", help="conversation in FILE; its last answer becomes the target's own")
    parser.add_argument("--layers", type=whole_number(1), default=2, metavar="N", help="of the draft")
    parser.add_argument("--features", type=whole_number(1), default=5, metavar="N", help="target layers it reads")
    parser.add_argument("--block-size", type=whole_number(2), default=8, metavar="B", help="slots in a block")
    parser.add_argument("--init", choices=("random", "warm"), default="random", help="where its weights begin")
    parser.add_argument("--max-steps", type=whole_number(1), default=200, metavar="N", help="training steps at most")
    parser.add_argument("--every", type=whole_number(1), default=10, metavar="N", help="steps between decodings")
    parser.add_argument("--lr", type=number_between(0, 1), default=1e-3, help="learning rate")
    parser.add_argument("--answer-tokens", type=whole_number(4), default=48, metavar="N", help="of the answer at most")
    parser.add_argument("--seed", type=whole_number(0), default=0, help="of weights and anchors")
    _finish(parser, _run_overfit)


def _add_leak(gates: argparse._SubParsersAction) -> None:
    parser = gates.add_parser(
        "leak",
        help="change what a block must not see and what it must, and watch its output",
        description="Change every feature, slot and token in turn: a block's output must stay exactly the same for "
        "what it must not see, and react to what it must. All forms of the mask, with and without a sliding window, "
        "packed rows and padding. On the embedded target and two CPU cores: about a minute.",
    )
    parser.add_argument(
        "--draft",
        metavar="D",
        help="a draft folder, or 'fresh'; left out, the shipped one, but a fresh one where none is shipped or "
        "--block-size is given",
    )
    parser.add_argument("--block-size", type=whole_number(2), metavar="B", help="of a fresh draft; left out, 8")
    parser.add_argument("--window", type=whole_number(2), metavar="W", help="tokens; left out, the draft's own or 6")
    parser.add_argument("--seed", type=whole_number(0), default=0, help="of texts and changes")
    _finish(parser, _run_leak, dtype="float32")  # bf16 may round away how little a distant token matters


def _add_layers(gates: argparse._SubParsersAction) -> None:
    parser = gates.add_parser(
        "layers",
        help="move a draft's features by one layer up and down: it has to get worse",
        description="Loss, tau estimate and first-slot accuracy of a draft with its features as they are and moved by "
        "one layer. Passed when the loss gets worse both ways beyond a 95 % interval over conversations. On the "
        "embedded target and two CPU cores: a few minutes with the built-in prompts, most of it for their answers.",
    )
    parser.add_argument("--draft", metavar="D", default="default", help="a draft folder, or the shipped one")
    parser.add_argument(
        "--conversations",
        type=Path,
        metavar="FILE",
        help="JSONL, best not trained on; left out, built-in prompts answered by the target",
    )
    parser.add_argument("--limit", type=whole_number(4), metavar="N", help="conversations of FILE; left out, 64")
    parser.add_argument("--max-length", type=whole_number(8), default=512, metavar="N", help="tokens of a conversation")
    parser.add_argument("--anchors", type=whole_number(1), default=64, metavar="N", help="blocks of a conversation")
    parser.add_argument("--seed", type=whole_number(0), default=0, help="of blocks and intervals")
    _finish(parser, _run_layers)


def _finish(parser: argparse.ArgumentParser, run, **defaults) -> None:
    add_machine_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.set_defaults(run=run, kept=_KEPT, **defaults)


def _run_overfit(args: argparse.Namespace) -> int:
    if args.id is not None and args.conversations is None:
        raise UserError("--id names a conversation of a file: give --conversations FILE, too.")
    check_target(args)

    from tqdm import tqdm

    from dflash.checks.overfit import OverfitSettings, check_overfit

    settings = OverfitSettings(
        num_hidden_layers=args.layers,
        num_features=args.features,
        block_size=args.block_size,
        init=args.init,
        max_steps=args.max_steps,
        every=args.every,
        lr=args.lr,
        answer_tokens=args.answer_tokens,
        seed=args.seed,
    )
    conversation = _one_conversation(args)

    def show(point: "OverfitPoint") -> None:
        tqdm.write(
            f"step {point.step:>5}  loss {point.loss:7.3f}  slots right {point.slots_right:4.0%}  "
            f"blocks right {point.blocks_right:4.0%}  tau {point.tau:5.2f}  longest {point.longest}"
        )

    report = check_overfit(load_target(args), conversation, settings, on_point=None if args.json else show)
    return _conclude(args, report, _overfit_verdict(report))


def _one_conversation(args: argparse.Namespace) -> "Conversation":
    from dflash.checks.texts import OVERFIT_PROMPT
    from dflash.data.conversations import Conversation, read_conversations

    if args.conversations is None:
        name = "built-in" if args.prompt is None else "--prompt"
        return Conversation(name, [{"role": "user", "content": args.prompt or OVERFIT_PROMPT}])
    found = read_conversations(args.conversations)
    chosen = next((item for item in found if args.id in (None, item.id)), None)
    if chosen is None:
        raise UserError(f"{args.conversations} holds no conversation with the id {args.id!r}: give one that it holds.")
    return chosen


def _overfit_verdict(report: "OverfitReport") -> str:
    last = report.points[-1]
    return (
        f"after {last.step} steps decoding accepts a full block of {report.block_size} tokens (tau {last.tau:.2f}) on "
        f"conversation {report.conversation!r}."
    )


def _run_leak(args: argparse.Namespace) -> int:
    if args.block_size is not None and args.draft not in (None, "fresh"):
        raise UserError("--block-size shapes a fresh draft only: leave it out, or give --draft fresh.")
    check_target(args)
    if args.draft not in (None, "fresh"):
        check_models(args)

    from dflash.checks.leak import check_leak

    target = load_target(args)
    draft = _draft_or_fresh(args, target)
    windows = None if args.window is None else (None, args.window)
    with warnings.catch_warnings():
        # On a CPU FlexAttention runs uncompiled, which is slow and exact: what is wanted here.
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        report = check_leak(draft, target, windows=windows, seed=args.seed)
    if not args.json:
        kind = "fresh, random" if _is_fresh(args, target) else args.draft or "the shipped one"
        print(f"Draft: {kind}, blocks of {draft.config.block_size}\n{_leak_table(report)}")
    outside, inside = max(case.outside for case in report.cases), min(case.inside for case in report.cases)
    return _conclude(
        args,
        report,
        f"no block reacts to what it must not see (largest change {outside:g}), and each to all that it must see "
        f"(smallest change {inside:.2g}).",
    )


def _is_fresh(args: argparse.Namespace, target: "TargetModel") -> bool:
    from dflash.model.draft_folder import SHIPPED_DRAFTS

    shipped = target.name in SHIPPED_DRAFTS
    return args.draft == "fresh" or (args.draft is None and (args.block_size is not None or not shipped))


def _draft_or_fresh(args: argparse.Namespace, target: "TargetModel") -> "DFlashDraft":
    import torch

    from dflash.model.config import DFlashConfig
    from dflash.model.draft import DFlashDraft
    from dflash.model.loading import load_draft

    if not _is_fresh(args, target):
        return load_draft(args.draft, target)
    torch.manual_seed(args.seed)
    features = min(5, max(1, target.num_layers - 3))
    config = DFlashConfig.for_target(
        target, num_hidden_layers=2, num_features=features, block_size=args.block_size or 8
    )
    return DFlashDraft(config).to(device=target.device, dtype=target.dtype).eval()


def _leak_table(report: "LeakReport") -> str:
    rows = [("attention", "window", "draft", "changed", "outside", "inside", "")]
    for case in report.cases:
        verdict = "ok" if case.passed else f"{case.violations} violations"
        window = "none" if case.window is None else str(case.window)
        rows.append(
            (case.form, window, case.depth, case.changed, f"{case.outside:g}", f"{case.inside:.2g}", verdict)
        )
    return _columns(rows)


def _run_layers(args: argparse.Namespace) -> int:
    if args.limit is not None and args.conversations is None:
        raise UserError("--limit counts conversations of a file: give --conversations FILE, too.")
    check_models(args)

    from dflash.checks.layers import check_layers
    from dflash.checks.texts import answered_prompts
    from dflash.data.conversations import read_conversations
    from dflash.data.template import render
    from dflash.model.loading import load_draft

    given = read_conversations(args.conversations, args.limit or 64) if args.conversations else None
    target = load_target(args)
    draft = load_draft(args.draft, target)
    conversations = answered_prompts(target) if given is None else given
    rendered = [render(conversation, target.tokenizer, args.max_length) for conversation in conversations]
    report = check_layers(draft, target, rendered, num_anchors=args.anchors, seed=args.seed)
    if not args.json:
        print(_layers_table(report))
    others = [row.loss_increase.low for row in report.rows if row.loss_increase]
    return _conclude(
        args,
        report,
        f"the draft's own layers are best; the loss of the others is higher by at least {min(others):.3f} (95 %).",
    )


def _layers_table(report: "LayersReport") -> str:
    rows = [("offset", "layers", "loss", "tau~", "slot 1", "loss higher by", "tau~ lower by")]
    for row in report.rows:
        rows.append(
            (
                f"{row.offset:+d}" if row.offset else "0",
                ",".join(map(str, row.layer_ids)),
                f"{row.loss:.3f}",
                f"{row.tau_estimate:.3f}",
                f"{row.first_slot_accuracy:.1%}",
                _interval(row.loss_increase),
                _interval(row.tau_decrease),
            )
        )
    left_out = "".join(f"; offset {o:+d} lies outside the target" for o in report.skipped_offsets)
    return f"{_columns(rows)}\n{report.conversations} conversations, {report.blocks} blocks, 95 % intervals{left_out}"


def _interval(difference: "Difference | None") -> str:
    return f"{difference.value:.3f} [{difference.low:.3f}, {difference.high:.3f}]" if difference else "-"


def _columns(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _conclude(args: argparse.Namespace, report: "OverfitReport | LeakReport | LayersReport", verdict: str) -> int:
    """Print what came of it; the exit code."""
    if args.json:
        record = {"gate": args.gate, "passed": report.passed, "reason": report.reason, **asdict(report)}
        print(json.dumps(record, ensure_ascii=False))
    else:
        print(f"PASSED: {verdict}" if report.passed else f"FAILED: {report.reason}")
    return 0 if report.passed else 1
