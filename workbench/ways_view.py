"""The comparison list of the Decode page: the ways that are asked for, and how they are run on the bench's models."""

from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any

from dflash.decoding.prompt import render_prompt
from dflash.decoding.ways import MAX_WAYS, Lineup, Measured, Way
from dflash.errors import UserError
from dflash.evaluation.ways_report import label, row_of
from workbench.bench import Bench
from workbench.beside import Beside
from workbench.race_settings import RaceSettings

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


def compare_ways(
    bench: Bench,
    settings: RaceSettings,
    ways: list[Way],
    rounds: int,
    *,
    report: Callable[[dict[str, Any]], None] = lambda picture: None,
) -> list[dict[str, Any]]:
    """Run the ways on the prompt of `settings` and its history; returns the rows that the page draws.

    `beside` in each row says what computed beside the comparison and spoilt its times; empty where nothing did.
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
    beside = Beside(bench.runs)
    beside.look()

    def tick(way: Way, number: int) -> None:
        nonlocal message
        of = f", round {number} of {rounds}" if rounds > 1 else ""
        message = f"{label(way)}{of} …"
        report({"message": message, "rows": rows})

    def show(measured: list[Measured]) -> None:
        beside.look()
        rows[:] = [row_of(one) | {"beside": beside.sentence} for one in measured]
        report({"message": message, "rows": rows})

    measured = lineup.run(prompt_ids, settings.max_new_tokens, int(rounds), tick=tick, show=show)
    return [row_of(one) | {"beside": beside.sentence} for one in measured]


def entry_of(way: Way) -> dict[str, Any]:
    """A way as it stands in the page's list."""
    return asdict(way) | {"label": label(way)}
