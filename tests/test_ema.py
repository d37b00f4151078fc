"""The moving average of the weights: its value, its place in validation and in the saved draft, and exact return."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dflash.training.ema import WeightAverage
from dflash.training.trainer import train
from tiny_runs import metrics, open_trainer, tiny_config, weights, write_conversations


@pytest.fixture
def config(tiny_target_folder, tmp_path):
    talk = write_conversations(tmp_path / "talk.jsonl")
    return lambda **sections: tiny_config(tiny_target_folder, talk, **sections)


def test_the_average_follows_its_definition():
    model = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(model.weight)
    average, expected = WeightAverage(model, decay=0.5), torch.zeros(1, 2)
    for step in range(1, 30):
        with torch.no_grad():
            model.weight += 1
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
        assert torch.allclose(average.tensors["weight"], expected)
    assert average.tensors["weight"][0, 0] == pytest.approx(28.0, abs=0.01), "followed one step behind"


def test_the_weights_come_back_to_the_last_bit():
    model = nn.Linear(16, 16)
    average = WeightAverage(model, decay=0.9)
    nn.init.normal_(model.weight)
    average.update(1)
    weight, mean = model.weight.detach().clone(), average.tensors["weight"].clone()
    with pytest.raises(ZeroDivisionError), average.applied():
        assert torch.equal(model.weight, mean)
        raise ZeroDivisionError
    assert torch.equal(model.weight, weight) and torch.equal(average.tensors["weight"], mean)


def test_validation_and_the_saved_draft_use_the_average_and_training_does_not(config, tmp_path):
    train(config(), tmp_path / "plain", progress=False)
    averaged = train(config(optimizer={"ema_decay": 0.9}), tmp_path / "averaged", progress=False)
    assert metrics(tmp_path / "plain", "train") == metrics(tmp_path / "averaged", "train")
    losses = [[line["loss"] for line in metrics(tmp_path / run, "validation")] for run in ("plain", "averaged")]
    assert all(a != b for a, b in zip(*losses, strict=True))

    (state,) = (averaged.parent / "state").iterdir()
    stored = load_file(state)
    for name, weight in weights(averaged).items():
        assert torch.equal(weight, stored[f"average.{name}"].bfloat16().float()), name
    assert any(not torch.equal(stored[f"average.{n}"], stored[f"weights.{n}"]) for n in weights(averaged))


def test_decoding_uses_the_average(config, tmp_path):
    settings = config(optimizer={"ema_decay": 0.9}, metrics={"decode_every": 3, "decode_count": 1, "decode_tokens": 4})
    seen = []
    with open_trainer(settings, tmp_path / "run") as trainer:
        decoding = trainer.measurements._decoding
        measure = decoding.measure
        decoding.measure = lambda draft, **how: (seen.append(draft.state_dict()), measure(draft, **how))[1]
        trainer.fit()
        last = {name: tensor.bfloat16().float() for name, tensor in trainer.average.tensors.items()}
    assert len(seen) == 2
    assert all(torch.equal(tensor, last[name]) for name, tensor in seen[-1].items())
