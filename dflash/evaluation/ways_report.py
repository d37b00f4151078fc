"""What a comparison of ways found, in words and as plain values: for the Decode page, the API and `dflash compare`."""

import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dflash.decoding.ways import Measured, Way, yardstick
from dflash.evaluation.draft_names import draft_label

ENGINES = {"dflash": "this engine", "transformers": "transformers"}
_NAMES = {
    "target": "Target alone",
    "plain": "Plain generate",
    "prompt_lookup": "Prompt lookup",
    "assistant": "Small draft",
}


def label(way: Way) -> str:
    """A way in a few words: "DFlash shipped, block 8, T 0.8"."""
    temperature = f", T {way.temperature:g}" if way.temperature else ""
    if way.kind == "draft":
        draft = draft_label(way.draft) if way.draft else "draft"  # unnamed: the one that the workbench opened with
        block = f", block {way.block_size}" if way.block_size else ""
        rule = ", rejection" if way.rule == "rejection" else ""
        return f"DFlash {draft}{block}{temperature}{rule}"
    if way.kind == "prompt_lookup":
        return f"{_NAMES[way.kind]}, {way.lookup_tokens} tokens{temperature}"
    if way.kind == "assistant":
        return f"{_NAMES[way.kind]} {Path(way.assistant).name}{temperature}"
    return f"{_NAMES[way.kind]}{temperature}"


def row_of(measured: Measured) -> dict[str, Any]:
    """One line of the table: medians over rounds, each round's own values, and the verdict on the text."""
    way = measured.way
    return {
        "label": label(way),
        "kind": way.kind,
        "way": asdict(way),
        "engine": ENGINES[way.engine],
        "yardstick": way == yardstick(way),
        "tokens": len(measured.tokens),
        "forwards": measured.forwards,
        "tau": measured.tau,
        "tok_s": statistics.median(measured.tok_s),
        "tok_s_rounds": list(measured.tok_s),
        "time_to_first_token_s": statistics.median(measured.time_to_first_token_s),
        "speedup": measured.speedup,
        "speedup_rounds": list(measured.speedups),
        "rounds": len(measured.tok_s),
        "identical": measured.identical,
        "verdict": _verdict(measured),
    }


def _verdict(measured: Measured) -> str:
    if measured.way.kind == "target":
        return "the yardstick"
    if not measured.way.sampling.greedy:
        return "sampled, not compared"
    if measured.identical is None:
        return "not compared yet"
    shape = "in the block's shape" if measured.way.kind == "draft" else "one token per forward"
    if measured.identical:
        return f"identical to plain decoding {shape}"
    found = measured.difference
    gap = "" if found.gap is None else f", logit gap {abs(found.gap):.3f}"
    return f"differs from plain decoding {shape} at token {found.index + 1}{gap}"
