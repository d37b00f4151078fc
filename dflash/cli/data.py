"""`dflash data inspect`: what conversations look like to the trainer, before any training."""

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from dflash.cli.options import whole_number
from dflash.embedded import EMBEDDED_NAME
from dflash.errors import UserError

if TYPE_CHECKING:
    from dflash.config import DataConfig
    from dflash.data.load import Loaded, Reject
    from dflash.data.statistics import DataStatistics

_UNCUT = 1 << 31  # tokens, more than any conversation has
_EXAMPLE_TOKENS = 400
_PLACES = 5  # lines named for each reason
_GREEN, _PLAIN = "\033[32m", "\033[0m"


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("data", help="look at training data", description="Look at training data.")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True, dest="action")
    inspect = actions.add_parser(
        "inspect",
        help="counts, lengths, what is left out and why, and an example with its loss mask",
        description="Read conversations as the trainer does and report their number and lengths, the share of "
        "supervised tokens, which ones are left out and why, and one rendered example with its supervised text marked.",
    )
    inspect.add_argument(
        "source",
        metavar="FILE|CONFIG",
        help="conversations (JSONL, parquet or arrow file, data folder or Hugging Face id), or a training config (YAML "
        "file or shipped recipe), whose data and target are taken",
    )
    inspect.add_argument("overrides", nargs="*", metavar="SECTION.KEY=VALUE", help="settings that replace the config's")
    inspect.add_argument("--target", metavar="T", help=f"whose tokenizer; left out, the config's or {EMBEDDED_NAME}")
    inspect.add_argument(
        "--max-length", type=whole_number(8), metavar="N", help="tokens; left out, the config's, and files are not cut"
    )
    inspect.add_argument("--limit", type=whole_number(1), metavar="N", help="conversations read from each source")
    inspect.add_argument("--subset", metavar="NAME", help="configuration of a data set that has several")
    inspect.add_argument("--split", metavar="NAME", help="of a data set; left out, the config's or train")
    inspect.add_argument("--json", action="store_true", help="print everything as one JSON object")
    inspect.set_defaults(run=run, kept="nothing was written.")


def run(args: argparse.Namespace) -> int:
    config, target, revision = _settings(args)
    _refuse_early(config, target, revision)

    from dflash.data.load import load_conversations
    from dflash.data.statistics import mask_runs, statistics_of
    from dflash.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(target, revision)
    loaded = load_conversations(config, tokenizer, progress=not args.json)
    statistics = statistics_of(loaded, max_length=config.max_length, packing=config.packing)
    example = loaded.rendered[0] if loaded.rendered else None
    runs = mask_runs(example, tokenizer, None if args.json else _EXAMPLE_TOKENS) if example else []
    if args.json:
        print(json.dumps(_record(config, target, statistics, loaded, runs), ensure_ascii=False))
        return 0
    print("\n".join([*_counts(config, target, statistics), *_rejects(loaded)]))
    if example:
        colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        print(f"\nExample {example.id!r}, supervised text {'in green' if colour else 'between ⟦ and ⟧'}:\n")
        print("".join(_show(text, supervised, colour) for text, supervised in runs))
        if len(example.input_ids) > _EXAMPLE_TOKENS:
            print(f"... and {len(example.input_ids) - _EXAMPLE_TOKENS:,} tokens more")
    return 0


def _settings(args: argparse.Namespace) -> tuple["DataConfig", str, str | None]:
    """The data section to load, and the name and revision of the target whose tokenizer to use."""
    from dflash.config import DataConfig, load_config
    from dflash.data.sources import is_file
    from dflash.recipes import resolve_recipe, shipped_recipes

    if args.source.endswith((".yaml", ".yml")) or args.source in shipped_recipes():
        config = load_config(resolve_recipe(args.source), args.overrides)
        data, target, revision = config.data, config.target.name, config.target.revision
    elif args.overrides:
        raise UserError(f"{args.overrides[0]!r} changes a config, but {args.source!r} is none: use an option instead.")
    else:
        data, target, revision = DataConfig(train=[args.source], max_length=_UNCUT), EMBEDDED_NAME, None
    if (args.subset or args.split) and all(is_file(source) for source in data.train):
        raise UserError(f"{', '.join(data.train)}: files have no subsets and splits: drop --subset and --split.")
    given = {name: getattr(args, name) for name in ("max_length", "limit", "subset", "split")}
    data = data.model_copy(update={name: value for name, value in given.items() if value is not None})
    return (data, args.target, None) if args.target else (data, target, revision)


def _refuse_early(config: "DataConfig", target: str, revision: str | None) -> None:
    """What the files alone tell is said before a tokenizer is loaded, which takes seconds.

    Raises:
        UserError: there is no such target, or a source holds prompts.
    """
    from dflash.data.kinds import refuse_prompts
    from dflash.data.sources import is_jsonl
    from dflash.target_source import check_target_reachable

    for source in filter(is_jsonl, config.train):
        refuse_prompts(Path(source).expanduser())
    check_target_reachable(target, revision)


def _counts(config: "DataConfig", target: str, statistics: "DataStatistics") -> list[str]:
    total = statistics.used + statistics.rejected
    lines = [f"{', '.join(config.train)}, with the tokenizer of {target}"]
    lines.append(f"  conversations   {total:,}: {statistics.used:,} usable, {statistics.rejected:,} left out")
    if not statistics.used:
        return lines
    lines.append(
        f"  tokens          {statistics.tokens:,}, of which {statistics.supervised:,} "
        f"({statistics.supervised_share:.1%}) supervised"
    )
    for name, values in (("length", statistics.lengths), ("supervised", statistics.supervised_lengths)):
        lines.append(f"  {name:<15} " + ", ".join(f"{where} {value:,}" for where, value in values.items()))
    if config.max_length < _UNCUT:
        lines.append(f"  cut             {statistics.truncated:,} at {config.max_length:,} tokens")
    if statistics.row_fill is not None:
        lines.append(f"  packed rows     {statistics.rows:,}, filled to {statistics.row_fill:.1%}")
    return lines


def _rejects(loaded: "Loaded") -> list[str]:
    lines = ["Left out:"] if loaded.rejects else []
    for reason, count in loaded.reasons:
        places = [_place(reject) for reject in loaded.rejects if reject.reason == reason]
        more = f" and {count - _PLACES:,} more" if count > _PLACES else ""
        lines.append(f"  {count:>7,}  {reason}: {', '.join(places[:_PLACES])}{more}")
    return lines


def _place(reject: "Reject") -> str:
    return f"{Path(reject.source).name}:{reject.line}" + (f" ({reject.id})" if reject.id else "")


def _show(text: str, supervised: bool, colour: bool) -> str:
    # A conversation may hold control characters, which a terminal would obey.
    text = "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
    if not supervised:
        return text
    return f"{_GREEN}{text}{_PLAIN}" if colour else f"⟦{text}⟧"


def _record(config, target: str, statistics: "DataStatistics", loaded: "Loaded", runs) -> dict:
    return {
        "sources": config.train,
        "target": target,
        "max_length": config.max_length if config.max_length < _UNCUT else None,
        **asdict(statistics),
        "supervised_share": statistics.supervised_share,
        "reasons": dict(loaded.reasons),
        "rejects": [asdict(reject) for reject in loaded.rejects],
        "example": {
            "id": loaded.rendered[0].id,
            "runs": [{"text": text, "supervised": supervised} for text, supervised in runs],
        }
        if loaded.rendered
        else None,
    }
