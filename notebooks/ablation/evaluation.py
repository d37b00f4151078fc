"""What notebook 05 calls: a detailed evaluation in the chosen setting, and its tables."""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

import dflash
from dflash.errors import UserError
from dflash.evaluation.acceptance import Proportion
from dflash.evaluation.breakdown import Estimate, most_missed
from dflash.evaluation.report_file import Answer, Evaluation, parse_report

_HERE = Path(__file__).resolve().parents[1]
RECORDED = _HERE / "results" / "05_where_drafts_die.json"
_PROMPTS = Path(dflash.__file__).parent / "assets" / "prompts" / "examples.jsonl"
_SMALL = ("--limit", "2", "--max-new-tokens", "12", "--threads", "1")


def evaluation_of(setting: str) -> tuple[Evaluation, str]:
    """The committed evaluation ("recorded") or a tiny one made now ("small"), and what made it, in words.

    Raises:
        UserError: there is no such setting, or the evaluation failed.
    """
    if setting == "recorded":
        record = json.loads(RECORDED.read_text(encoding="utf-8"))
        machine = record["machine"]
        made = f"{record['date']} on {machine['cpu']}, {machine['threads']} thread, {machine['dtype']}"
        return parse_report(record, str(RECORDED)), f"{record['command']}\n{made}"
    if setting == "small":
        return _small()
    raise UserError(f"SETTING = {setting!r} is unknown: choose 'recorded' or 'small'.")


def proportions(names: Sequence[str], found: Iterable[Proportion], what: str) -> pd.DataFrame:
    """One row per name: the share in percent, Wilson's interval, and hits out of tries."""
    rows = {
        name: {
            f"{what}, %": "-" if one.value is None else f"{100 * one.value:.1f}",
            f"95 % interval ({what})": "-" if one.value is None else "[{:.1f}, {:.1f}]".format(*_percent(one)),
            f"n ({what})": f"{one.hits} of {one.total}",
        }
        for name, one in zip(names, found, strict=True)
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def estimates(names: Iterable[str], found: Iterable[Estimate], what: str) -> pd.DataFrame:
    """One row per name: tau, its interval, and how many prompts and steps say so."""
    rows = {
        name: {
            "tau": "-" if one.value is None else f"{one.value:.2f}",
            "95 % interval": "-" if one.interval is None else "[{:.2f}, {:.2f}]".format(*one.interval),
            "prompts": one.prompts,
            "steps": one.steps,
        }
        for name, one in zip(names, found, strict=True)
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(what)


def missed(answers: Sequence[Answer], count: int) -> pd.DataFrame:
    """The target's tokens at which most blocks died: their share of all deaths, Wilson's interval, the draft's tokens.

    Not the share of a token's own occurrences: a trimmed report keeps the tokens of deaths alone.
    """
    deaths = sum(1 for answer in answers for _ in answer.detail.misses())
    worst = most_missed(answers, count)
    shares = proportions(
        [repr(one.text) for one in worst], [Proportion(one.missed.hits, deaths) for one in worst], "of all deaths"
    )
    instead = [", ".join(f"{text!r} {times}" for text, times in one.instead) for one in worst]
    return shares.assign(**{"the draft wrote": instead}).rename_axis("target's token")


def _percent(one: Proportion) -> tuple[float, float]:
    low, high = one.interval
    return 100 * low, 100 * high


def _small() -> tuple[Evaluation, str]:
    with TemporaryDirectory() as folder:
        out = Path(folder) / "small.json"
        arguments = ("evaluate", "--prompts", str(_PROMPTS), *_SMALL)
        finished = subprocess.run([sys.executable, "-m", "dflash", *arguments, "--json", str(out)])
        if not out.is_file():
            raise UserError(f"The small evaluation ended with code {finished.returncode}: see its message above.")
        record = json.loads(out.read_text(encoding="utf-8"))
    return parse_report(record, str(out)), shlex.join(("dflash", "evaluate", "--prompts", _PROMPTS.name, *_SMALL))
