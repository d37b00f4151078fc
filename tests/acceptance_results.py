"""Result files for tests of the Acceptance page, written by real evaluations of a scripted draft on the tiny target."""

from pathlib import Path

from scripted_proposer import ScriptedProposer

from dflash.data.conversations import Prompt
from dflash.decoding.engine import Engine
from dflash.evaluation.benchmark import EvaluationSettings, evaluate_to_file

PROMPTS = [
    Prompt("a", ["One two three"], "math", "English", "first"),
    Prompt("b", ["Eins zwei drei"], "code", "German", "first"),
    Prompt("c", ["Un deux trois"], "math", "French", "second"),
]


def write_result(target, path: Path, *, right: int, draft_name: str = "scripted", prompts=PROMPTS) -> Path:
    """Evaluate a draft that is right up to `right` guesses a block where the target goes on as it expects."""
    known = Engine(target).decode_target([5, 9, 77, 31], max_new_tokens=64, stop_ids=()).finish().tokens
    engine = Engine(target, proposer=ScriptedProposer(known, lambda rng: right))
    path.parent.mkdir(parents=True, exist_ok=True)
    evaluate_to_file(engine, prompts, path, EvaluationSettings(24), draft_name=draft_name, progress=False)
    return path
