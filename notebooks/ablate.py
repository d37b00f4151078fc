"""Make the runs behind notebooks 02 to 04: `python notebooks/ablate.py 02 03 04 --seeds 0 1`, from the repository.

Each run takes minutes on a CPU core. Give the same command again to go on after an interruption, or more seeds to
narrow the intervals; a notebook shows whatever runs its file in notebooks/results/ holds.
"""

import argparse
import sys
from pathlib import Path

from ablation.runner import Runner
from ablation.settings import ABLATIONS, ablation

from dflash.errors import UserError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", default=[a.number for a in ABLATIONS], help="notebooks: 02, 03, 04")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="of the runs")
    parser.add_argument("--values", type=float, nargs="+", metavar="X", help="of the setting; left out, all of them")
    parser.add_argument("--config", type=Path, default=Path("notebooks/ablation.yaml"), help="the base config")
    parser.add_argument("--features", type=Path, default=Path("data/ablation-features"), help="captured once")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"), help="folder that holds the runs")
    parser.add_argument("--results", type=Path, default=Path("notebooks/results"), help="folder of the result files")
    args = parser.parse_args()
    runner = Runner(args.config, args.features, args.runs, args.results)
    try:
        runner.capture()
        for seed in args.seeds:  # one seed of everything before the next one: an early end leaves equal counts
            for number in args.numbers:
                chosen = ablation(number)
                runner.run(chosen, [v for v in chosen.values if args.values is None or v in args.values], seed)
    except UserError as error:
        print(f"ablate: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
