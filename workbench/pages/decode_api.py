"""The Decode page's actions as named endpoints."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from dflash.decoding.ways import other_ways
from dflash.errors import UserError
from workbench.bench import Bench
from workbench.endpoints import computing, register
from workbench.race import Race
from workbench.race_record import exported, parse_record
from workbench.race_settings import RaceSettings, parse_history
from workbench.traces import open_trace, save_trace
from workbench.ways_view import compare_ways as run_ways
from workbench.ways_view import way_of

Report = Callable[[Any], None]


def build(bench: Bench) -> None:
    """Register the endpoints in the open Blocks."""

    @computing
    def decode(
        report: Report,
        prompt: str,
        max_new_tokens: int = 128,
        block_size: int = 0,
        temperature: float = 0.0,
        rule: str = "target",
        draft: str = "",
        seed: int = 0,
        history: list | None = None,
    ) -> dict:
        """Decode a prompt with the target alone and with draft + target; returns traces, tau, speed-up and identity.

        `history` is a list of messages before the prompt, each with `role` and `content`.
        """
        said = parse_history(history)
        race = Race(bench, RaceSettings(prompt, max_new_tokens, block_size, temperature, rule, draft, seed, said))
        for picture in race.run():
            report(picture)
        return exported(race.record)

    @computing
    def compare_ways(
        report: Report,
        prompt: str,
        max_new_tokens: int = 128,
        drafts: list | None = None,
        lookup_tokens: int = 10,
        assistant: str = "",
        temperature: float = 0.0,
        seed: int = 0,
        rounds: int = 1,
        history: list | None = None,
    ) -> list:
        """Measure several drafts, prompt lookup and a small model on one prompt; returns a row for each way.

        `drafts` is a list of objects with any of draft, block_size, temperature, rule and seed; left out, the default
        draft. `lookup_tokens` 0 leaves prompt lookup out; `assistant` is the small model's folder or id.
        """
        said = parse_history(history)
        settings = RaceSettings(prompt, max_new_tokens, temperature=temperature, seed=seed, history=said)
        wanted = drafts or [{"temperature": float(temperature), "seed": seed if temperature else 0}]
        ways = [way_of({"kind": "draft", **given} if isinstance(given, dict) else given) for given in wanted]
        ways += other_ways(float(temperature), seed, lookup_tokens, assistant)
        return run_ways(bench, settings, ways, rounds, report=report)

    def save_trace_endpoint(trace: dict) -> dict:
        """Keep a trace that `decode` returned or the page exported; returns its id and the end of its link."""
        try:
            name = save_trace(bench.runs, parse_record(trace))
        except UserError as error:
            raise _sentence(error) from error
        return {"id": name, "link": f"/?trace={name}"}

    def open_trace_endpoint(trace_id: str) -> dict:
        """The trace behind an id or the end of its link, as `decode` returns it."""
        try:
            return exported(open_trace(bench.runs, trace_id.rpartition("trace=")[2]))
        except UserError as error:
            raise _sentence(error) from error

    for endpoint, name in (
        (decode, "decode"),
        (compare_ways, "compare_ways"),
        (save_trace_endpoint, "save_trace"),
        (open_trace_endpoint, "open_trace"),
    ):
        register(endpoint, name)


def _sentence(error: UserError) -> gr.Error:
    return gr.Error(str(error), print_exception=False)
