"""The small setting of notebooks 02 to 04: the same way through capture, training and judging, in seconds.

Its figures mean nothing; it is run by the tests so that the notebooks cannot rot, and by whoever wants to see the way.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from ablation.results import RunResult, read_results
from ablation.runner import Runner, in_this_process
from ablation.settings import Ablation

_HERE = Path(__file__).resolve().parents[1]
CONVERSATIONS = _HERE / "data" / "conversations.jsonl"  # twelve answers of the embedded target

_SETTINGS = (
    f"data.train=[{json.dumps(str(CONVERSATIONS))}]",
    "data.limit=12",
    "data.validation_size=3",
    "data.max_length=96",
    "draft.num_hidden_layers=1",
    "objective.candidates=256",
    "run.max_steps=3",
    "run.batch_size=2",
    "checkpoint.every=3",
    "metrics.log_every=1",
    "metrics.validate_every=3",
)


def small_results(ablation: Ablation) -> list[RunResult]:
    """Train and judge one-layer drafts of three steps with the ablation's small values, in a folder that goes again."""
    with TemporaryDirectory() as folder:
        place = Path(folder)
        base, paths = _HERE / "ablation.yaml", (place / "features", place / "runs", place / "results")
        runner = Runner(base, *paths, extra=_SETTINGS, anchors=4, execute=in_this_process)
        runner.capture()
        runner.run(ablation, ablation.small, seed=0)
        return read_results(runner.file(ablation))
