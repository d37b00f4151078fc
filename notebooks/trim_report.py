"""Make a result of `dflash evaluate --json` fit to be committed: `python notebooks/trim_report.py IN OUT --command C`.

Answers may repeat their prompts, which are other people's, so all text goes except the single tokens at which blocks
died. Counts, positions and entropies stay as they are.
"""

import argparse
import json
from datetime import date
from pathlib import Path
from typing import Any

from dflash.evaluation.report_file import parse_report, write_report


def trimmed(record: dict[str, Any]) -> dict[str, Any]:
    """The report without text but for the target's and the draft's token where a block died."""
    answers = parse_report(record, "the report").answers
    results = []
    for result, answer in zip(record["results"], answers, strict=True):
        kept = {miss.position for miss in answer.detail.misses()}
        tokens, pieces = result["detail"]["tokens"], result["detail"]["pieces"]
        detail = result["detail"] | {
            "tokens": [token if place in kept else 0 for place, token in enumerate(tokens)],
            "pieces": [piece if place in kept else "" for place, piece in enumerate(pieces)],
        }
        results.append({name: value for name, value in result.items() if name != "answer"} | {"detail": detail})
    return record | {"results": results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--command", required=True, help="that made the report, to be kept in it")
    parser.add_argument("--date", default=date.today().isoformat(), help="on which it was made; left out, today")
    args = parser.parse_args()
    record = trimmed(json.loads(args.source.read_text(encoding="utf-8")))
    write_report(args.out, {"command": args.command, "date": args.date} | record)


if __name__ == "__main__":
    main()
