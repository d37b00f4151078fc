"""A request to stop cuts validation and decoding short on all ranks alike; what was cut is made up on resuming."""

import json
import os
import signal
import textwrap

import pytest

from dflash.training.trainer import train
from dflash.training.world import World
from tiny_runs import ALONE, metrics, open_trainer, tiny_config, torchrun, write_conversations

MEASURED = {"validate_every": 2, "decode_every": 2, "decode_count": 2, "decode_tokens": 6}


@pytest.fixture
def config(tiny_target_folder, tmp_path):
    talk = write_conversations(tmp_path / "talk.jsonl")
    return lambda **sections: tiny_config(
        tiny_target_folder, talk, data={"validation_size": 5}, metrics=MEASURED, checkpoint={"every": 3}, **sections
    )


@pytest.mark.parametrize("last", [2, 4], ids=["behind the last step", "in the middle of the run"])
@pytest.mark.parametrize("kind", ["validation", "decode"])
def test_a_measurement_under_way_is_cut_short_and_made_up_when_the_run_goes_on(config, tmp_path, kind, last):
    settings = config(run={"max_steps": last})
    train(settings, tmp_path / "whole", progress=False)
    prepared = []
    with open_trainer(settings, tmp_path / "cut") as trainer:
        interrupt(trainer, kind, prepared)
        assert trainer.fit() is False, "not finished, even behind the last step"
    assert len(prepared) == 1, "no batch or prompt more"
    kinds = [line["kind"] for line in metrics(tmp_path / "cut") if line["step"] == 2]
    assert kinds == {"validation": ["train"], "decode": ["train", "validation"]}[kind]
    train(settings, tmp_path / "cut", resume=True, progress=False)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    best = [json.loads((tmp_path / name / "checkpoints/best.json").read_text()) for name in ("whole", "cut")]
    assert best[0] == best[1]
    train(settings, tmp_path / "cut", resume=True, progress=False)
    assert "Already finished" in (tmp_path / "cut/log.txt").read_text()
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole"), "nothing is measured twice"


def interrupt(trainer, kind: str, seen: list) -> None:
    """SIGTERM arrives during the first batch of the first validation, or the first prompt of the first decoding."""
    owner, name = {
        "validation": (trainer.measurements, "_prepare"),
        "decode": (trainer.measurements._decoding, "measure"),
    }[kind]
    real = getattr(owner, name)

    def asked(*arguments, **options):
        seen.append(kind)
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments, **options)

    setattr(owner, name, asked)


def test_one_process_agrees_with_itself():
    assert ALONE.any(True) is True and ALONE.any(False) is False
    assert isinstance(ALONE, World)


STOPPED = textwrap.dedent("""
    import os, signal, sys
    from pathlib import Path
    from dflash.config import TrainConfig
    from dflash.training import measuring as module
    from dflash.training.trainer import train
    from dflash.training.world import joined
    here = Path(sys.argv[1])
    config = TrainConfig.model_validate_json((here / "config.json").read_text())
    with joined(config) as world:
        train(config, here / "whole", progress=False)
        take, batches = module.Measurements._validate, []

        def asked_in_the_middle(self):
            prepare = self._prepare

            def counting(rows):
                batches.append(rows)
                if world.rank == 1 and len(batches) == 2:
                    os.kill(os.getpid(), signal.SIGTERM)
                return prepare(rows)

            self._prepare = counting
            return take(self)

        module.Measurements._validate = asked_in_the_middle
        train(config, here / "cut", progress=False)
        (here / f"batches-of-{world.rank}").write_text(str(len(batches)))
        state = (here / "cut/status.json").read_text()
        world.barrier()
        if world.is_main:
            (here / "state-when-cut.json").write_text(state)
        module.Measurements._validate = take
        train(config, here / "cut", resume=True, progress=False)
""")


@pytest.mark.slow
def test_one_rank_that_is_asked_to_stop_during_a_validation_ends_it_for_both(config, tmp_path):
    settings = config(run={"max_steps": 4, "batch_size": 2})
    (tmp_path / "config.json").write_text(settings.model_dump_json(exclude_unset=True))
    result = torchrun(2, STOPPED, tmp_path)
    assert result.returncode == 0, result.stderr[-6000:]
    assert [(tmp_path / f"batches-of-{rank}").read_text() for rank in (0, 1)] == ["2", "2"], "of three"
    status = json.loads((tmp_path / "state-when-cut.json").read_text())
    assert (status["state"], status["step"]) == ("stopped", 2)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
