"""`python -m recording_dflash`: the `dflash` command whose ranks note which conversations they trained on, and when.

Each rank appends "STEP ID ID ..." per step to $RECORDS/rank-N.txt, after the gradients of the step are there. A step
takes $STEP_SECONDS longer, so that there is time to disturb it.
"""

import os
import sys
import time
from pathlib import Path

from dflash.cli.main import main
from dflash.online import trainers

_RECORDS = Path(os.environ["RECORDS"])


def note_conversations() -> None:
    from dflash.training import trainer

    accumulate = trainer.Trainer._accumulate

    def noting(self, micro_batches):
        seen = []

        def noted():
            for portion, micro in micro_batches:
                seen.extend(name for row in portion.rows for name in row.ids)
                yield portion, micro

        result = accumulate(self, noted())
        time.sleep(float(os.environ["STEP_SECONDS"]))
        with open(_RECORDS / f"rank-{self.world.rank}.txt", "a") as file:
            file.write(" ".join([str(self.state.step + 1), *seen]) + "\n")
        return result

    trainer.Trainer._accumulate = noting


if __name__ == "__main__":
    command = trainers.trainer_command
    trainers.trainer_command = lambda ranks, arguments: [
        "recording_dflash" if word == "dflash" else word for word in command(ranks, arguments)
    ]
    if "RANK" in os.environ or "TRAINS_ALONE" in os.environ:  # not in the launcher, which need not load all that
        note_conversations()
    sys.exit(main())
