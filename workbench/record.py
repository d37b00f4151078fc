"""`python -m workbench.record`: run one race for real and keep it as the one that visitors see first."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from dflash.embedded import EMBEDDED_NAME
from dflash.errors import UserError
from workbench.bench import Bench
from workbench.examples import EXAMPLE_PROMPTS
from workbench.pages.decode import RECORDING
from workbench.race import Race
from workbench.race_record import parse_record
from workbench.race_settings import RaceSettings
from workbench.traces import machine_words


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 recorded, 2 bad input."""
    options = _parser().parse_args(argv)
    try:
        recording = record(Bench(options.target, options.draft), options.prompt, options.max_new_tokens)
    except UserError as error:
        print(f"workbench.record: {error}", file=sys.stderr)
        return 2
    # Renamed into place, so that an interrupted run leaves the old recording whole.
    staging = options.out.with_suffix(".tmp")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    staging.write_text(json.dumps(recording, separators=(",", ":")) + "\n", encoding="utf-8")
    os.replace(staging, options.out)
    comparison = parse_record(recording["record"]).comparison()
    print(f"{options.out}: {comparison.speedup:.2f}x, tau {comparison.draft.tau:.2f}, identical {comparison.identical}")
    return 0


def record(bench: Bench, prompt: str, max_new_tokens: int) -> dict:
    """A race as `workbench/recordings/race.json` keeps it, marked with machine, date and command."""
    race = Race(bench, RaceSettings(prompt, max_new_tokens))
    for _ in race.run():
        pass
    recorded = {
        "machine": machine_words(race.record),
        "date": date.today().isoformat(),
        "command": "python -m workbench.record",
    }
    return {"recorded": recorded, "record": race.record.model_dump()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="workbench.record", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--target", default=EMBEDDED_NAME, help="embedded name, folder or Hugging Face id")
    parser.add_argument("--draft", default="", help="draft folder; empty takes the shipped one")
    parser.add_argument("--prompt", default=next(iter(EXAMPLE_PROMPTS.values())), help="text of the user's turn")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="tokens to decode at most")
    parser.add_argument("--out", type=Path, default=RECORDING, help="file to write")
    return parser


if __name__ == "__main__":
    sys.exit(main())
