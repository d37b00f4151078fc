"""The comparison list of the Decode page: the ways that are asked for, and what came of each, as the page draws it."""

import statistics
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from dflash.decoding.prompt import render_prompt
from dflash.decoding.ways import MAX_WAYS, Lineup, Measured, Way, yardstick
from dflash.errors import UserError
from workbench.bench import SHIPPED, Bench
from workbench.race_settings import RaceSettings

ENGINES = {"dflash": "this engine", "transformers": "transformers"}
_NAMES = {
    "target": "Target alone",
    "plain": "Plain generate",
    "prompt_lookup": "Prompt lookup",
    "assistant": "Small draft",
}
_FIELDS = {field.name: type(field.default) if field.name != "kind" else str for field in fields(Way)}


def way_of(given: Any) -> Way:
    """A way from JSON that somebody else may have written.

    Raises:
        UserError: it is none; the sentence names the field.
    """
    if not isinstance(given, dict) or "kind" not in given:
        raise UserError("A way to decode is an object with `kind`: add it again.")
    for name, value in given.items():
        kind = _FIELDS.get(name)
        if kind is None:
            raise UserError(f"A way to decode has no field {name!r}: choose from {', '.join(_FIELDS)}.")
        allowed = (int, float) if kind is float else kind
        if not isinstance(value, allowed) or isinstance(value, bool):
            raise UserError(f"The field {name} of a way to decode is {value!r}: it must be {kind.__name__}.")
    return Way(**given)


def draft_way(settings: RaceSettings) -> Way:
    """The way that the page's controls describe."""
    settings.sampling()  # refuses a bad temperature before it is in the list
    sampled = settings.temperature > 0
    return Way(
        "draft",
        temperature=settings.temperature,
        seed=settings.seed if sampled else 0,
        draft=settings.draft,
        block_size=settings.block_size,
        rule=settings.rule if sampled else "target",
    )


def added(entries: list[Way], way: Way) -> list[Way]:
    """The list with one more way.

    Raises:
        UserError: it is there already, or the list is full.
    """
    if way in entries:
        raise UserError("These settings are in the list already: change a setting and add them again.")
    if len(entries) >= MAX_WAYS:
        raise UserError(f"The list holds {MAX_WAYS} ways already: remove one.")
    return [*entries, way]


def other_ways(temperature: float, seed: int, lookup_tokens: int, assistant: str) -> list[Way]:
    """What transformers offers on the same target: plain decoding, and prompt lookup and a small model if asked for.

    Plain decoding is always among them: it says how fast that engine is by itself.
    """
    shared = {"temperature": temperature, "seed": seed if temperature else 0}
    ways = []
    if lookup_tokens:
        ways.append(Way("prompt_lookup", lookup_tokens=lookup_tokens, **shared))
    if assistant.strip():
        ways.append(Way("assistant", assistant=assistant.strip(), **shared))
    return [Way("plain", **shared), *ways] if ways else []


def compare_ways(
    bench: Bench,
    settings: RaceSettings,
    ways: list[Way],
    rounds: int,
    *,
    report: Callable[[dict[str, Any]], None] = lambda picture: None,
) -> list[dict[str, Any]]:
    """Run the ways on the prompt of `settings` and its history; returns the rows that the page draws.

    `report` gets {"message", "rows"} after every step; what it raises ends the work within that step.

    Raises:
        UserError: prompt, rounds or one of the ways cannot be used.
    """
    report({"message": "Loading and warming up every way …", "rows": []})
    messages = settings.messages()
    lineup = Lineup(ways, engine_of=bench.engine, assistant_of=bench.assistant, lookup=lambda: bench.target)
    prompt_ids = render_prompt(bench.target, messages, max_new_tokens=settings.max_new_tokens)
    rows: list[dict[str, Any]] = []
    message = ""

    def tick(way: Way, number: int) -> None:
        nonlocal message
        of = f", round {number} of {rounds}" if rounds > 1 else ""
        message = f"{label(way)}{of} …"
        report({"message": message, "rows": rows})

    def show(measured: list[Measured]) -> None:
        rows[:] = [row_of(one) for one in measured]
        report({"message": message, "rows": rows})

    return [
        row_of(one) for one in lineup.run(prompt_ids, settings.max_new_tokens, int(rounds), tick=tick, show=show)
    ]


def label(way: Way) -> str:
    """A way in a few words: "DFlash shipped, block 8, T 0.8"."""
    temperature = f", T {way.temperature:g}" if way.temperature else ""
    if way.kind == "draft":
        block = f", block {way.block_size}" if way.block_size else ""
        rule = ", rejection" if way.rule == "rejection" else ""
        return f"DFlash {_draft_name(way.draft)}{block}{temperature}{rule}"
    if way.kind == "prompt_lookup":
        return f"{_NAMES[way.kind]}, {way.lookup_tokens} tokens{temperature}"
    if way.kind == "assistant":
        return f"{_NAMES[way.kind]} {Path(way.assistant).name}{temperature}"
    return f"{_NAMES[way.kind]}{temperature}"


def entry_of(way: Way) -> dict[str, Any]:
    """A way as it stands in the page's list."""
    return asdict(way) | {"label": label(way)}


def row_of(measured: Measured) -> dict[str, Any]:
    """One line of the table."""
    way = measured.way
    return {
        "label": label(way),
        "kind": way.kind,
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


def _draft_name(draft: str) -> str:
    """A draft as people know it: a run's checkpoint by run and step, another folder by its name."""
    path = Path(draft)
    if not draft or draft == SHIPPED:
        return draft or "draft"
    if path.name == "draft" and path.parent.parent.name == "checkpoints":
        return f"{path.parents[2].name} {path.parent.name}"
    return path.name
