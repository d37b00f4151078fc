"""`python -m workbench.record_evaluation`: measure a draft for real and keep the results that visitors see first.

Runs `dflash evaluate` on the example prompts and `dflash benchmark`, and writes both below workbench/recordings, marked
with machine, date and this command.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from dflash.cli.main import main as dflash
from dflash.embedded import EMBEDDED_NAME
from dflash.evaluation.block_sizes_file import read_block_sizes
from dflash.evaluation.prompt_sets import EXAMPLE_SET
from dflash.evaluation.report_file import read_report, write_report
from dflash.files import write_atomically
from workbench.acceptance_view import machine_words
from workbench.evaluations import RECORDED_BLOCK_SIZES, RECORDED_EVALUATION, RECORDINGS


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 recorded, else that of the `dflash` command that failed."""
    options = _parser().parse_args(argv)
    command = " ".join(["python -m workbench.record_evaluation", *(sys.argv[1:] if argv is None else argv)])
    models = ["--target", options.target, "--draft", options.draft or "default", "--dtype", options.dtype]
    models += ["--threads", str(options.threads)] if options.threads else []
    with tempfile.TemporaryDirectory() as folder:
        evaluation, sizes = Path(folder) / "evaluation.json", Path(folder) / "block_sizes.json"
        prompts = ["--prompts", str(options.prompts), "--limit", str(options.limit)]
        tokens = ["--max-new-tokens", str(options.max_new_tokens)]
        # A difference to plain decoding (1) is a finding to record, not a reason not to.
        if (code := dflash(["evaluate", *prompts, *tokens, *models, "--json", str(evaluation)])) not in (0, 1):
            return code
        few = ["--limit", str(min(4, options.limit))]
        if code := dflash(
            ["benchmark", "--prompts", str(options.prompts), *few, *tokens, *models, "--json", str(sizes)]
        ):
            return code
        keep(evaluation, sizes, options.out, command, options.note)
    return 0


def keep(evaluation: Path, sizes: Path, out: Path, command: str, note: str = "") -> None:
    """Mark two result files as recorded, and put them where the workbench looks for them.

    `note` stands behind the machine's name wherever the recording is shown.

    Raises:
        UserError: one of them is no such result.
    """
    machines = (read_report(evaluation).machine, read_block_sizes(sizes).machine)  # damaged ones are refused here
    out.mkdir(parents=True, exist_ok=True)
    report = _marked(evaluation, machines[0], command, note)
    measured = _marked(sizes, machines[1], command, note)
    write_report(out / RECORDED_EVALUATION.name, report)
    write_atomically(out / RECORDED_BLOCK_SIZES.name, json.dumps(measured, indent=2, ensure_ascii=False) + "\n")
    print(f"{out / RECORDED_EVALUATION.name} and {RECORDED_BLOCK_SIZES.name} are recorded.")


def _marked(path: Path, machine: dict[str, Any], command: str, note: str) -> dict[str, Any]:
    words = ", ".join([machine_words(machine), *([note] if note else [])])
    mark = {"machine": words, "date": date.today().isoformat(), "command": command}
    return {"recorded": mark} | json.loads(path.read_text(encoding="utf-8"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="workbench.record_evaluation",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--target", default=EMBEDDED_NAME, help="embedded name, folder or Hugging Face id")
    parser.add_argument("--draft", default="", help="draft folder; empty takes the shipped one")
    parser.add_argument("--prompts", type=Path, default=EXAMPLE_SET, help="JSONL of prompts")
    parser.add_argument("--limit", type=int, default=16, help="prompts to decode")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="tokens per prompt at most")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves it to torch")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of target and draft")
    parser.add_argument("--note", default="", help="words behind the machine's name, such as what else ran there")
    parser.add_argument("--out", type=Path, default=RECORDINGS, help="folder to write to")
    return parser


if __name__ == "__main__":
    sys.exit(main())
