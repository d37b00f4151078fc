"""`dflash plan`: every number against one computed by hand, and where each comes from."""

import json

import pytest

from dflash.cli.main import main
from dflash.config import parse_config
from dflash.errors import UserError
from dflash.online.planner import in_flight_needed, plan_pipeline
from dflash.online.rates import Rate, complete_rates, measured_rates, prefill_flops, training_flops
from dflash.target_facts import TargetFacts
from dflash.training.draft_size import DraftShape

# 2 layers captured of a target of 10 layers; weights by hand below.
FACTS = TargetFacts(
    origin="here", depth=10, hidden_size=64, intermediate_size=128, heads=4, kv_heads=2, head_dim=16, vocab_size=1000,
    max_length=4096, tied=True,
)  # fmt: skip
SHAPE = DraftShape(
    hidden_size=64, intermediate_size=128, layers=3, features=2, heads=4, kv_heads=2, head_dim=16, block_size=8
)


def config(**sections):
    tree = {
        "target": {"name": "some/target"},
        "draft": {"num_hidden_layers": 3, "num_features": 2, "block_size": 8},
        "data": {"train": ["talk.jsonl"], "max_length": 500, "min_supervised": 8},
        "features": {"source": "online"},
        "blocks": {"num_anchors": 10},
        "online": {"in_flight": 4},
        "run": {"max_steps": 100, "batch_size": 24, "device": "cuda"},
    }
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section}
    return parse_config(tree, "test")


def rates(**values):
    """1,000 tokens/s per serving GPU, 500 per training GPU, 1 MB/s for each rank, rows of 200 tokens."""
    numbers = dict(prefill=1000.0, training=500.0, link=1e6, length=200.0, generation=50.0, answer=100.0) | values
    given = {name: Rate(value, "stated") for name, value in numbers.items()}
    return complete_rates(given, config(), FACTS, SHAPE, "h100")


def test_split_store_and_times_are_those_computed_by_hand():
    plan = plan_pipeline(config(), FACTS, rates(), 6, conversations=1200)
    # 2 serve at 1,000 each, 4 train at 500 each; 24 rows are shared by 1, 2, 3 or 4 ranks, not by 5.
    assert (plan.split.serving, plan.split.training, plan.split.tokens_per_s) == (2, 4, 2000)
    assert plan.bytes_per_token == 2 * 64 * 2
    assert plan.alone_tokens_per_s == pytest.approx(6 / (1 / 1000 + 1 / 500))  # the same: nothing is gained by dividing
    assert plan.link_use == pytest.approx(2000 * 256 / 4e6)
    assert plan.store_bytes == 4 * 4 * 500 * 256  # ranks x in flight x longest row x bytes per token
    assert plan.host_bytes == 2 * 4 * 500 * 256
    assert plan.in_flight == 4 and plan.in_flight_needed == 2  # (2 x 2 + 0.512) / 4, rounded up
    assert (plan.epoch_rows, plan.epoch_seconds) == (1200, pytest.approx(1200 * 200 / 2000))
    assert (plan.run_rows, plan.run_seconds) == (2400, pytest.approx(2400 * 200 / 2000))
    assert (plan.epoch_rows_are, plan.run_rows_are) == ("at most", "exactly")
    assert plan.regenerate_seconds is None
    assert [(one.serving, one.training) for one in plan.splits] == [(1, 4), (2, 4), (3, 3), (4, 2), (5, 1)]


def test_a_slow_link_limits_and_is_told():
    plan = plan_pipeline(config(), FACTS, rates(link=256 * 100), 6)  # 100 tokens/s for each rank
    assert plan.split.limit == "link" and plan.split.tokens_per_s == 400 and plan.link_use == pytest.approx(1)
    assert any("faster link" in note for note in plan.notes)


def test_a_given_division_is_planned_or_refused_with_those_that_are_possible():
    plan = plan_pipeline(config(), FACTS, rates(), 6, serving=3)
    assert (plan.split.serving, plan.split.training, plan.split.limit) == (3, 3, "trainer")
    wide = config(online={"tensor_parallel": 2})
    assert [one.serving for one in plan_pipeline(wide, FACTS, rates(), 6).splits] == [2, 4]
    with pytest.raises(UserError, match="3 cannot serve .*tensor_parallel = 2: choose one of 2, 4"):
        plan_pipeline(wide, FACTS, rates(), 6, serving=3)
    with pytest.raises(UserError, match="2 GPUs cannot be divided into servers .* give more GPUs"):
        plan_pipeline(wide, FACTS, rates(), 2)


def test_gpus_that_cannot_share_a_step_are_told_with_a_number_of_rows_that_would_use_them():
    notes = " ".join(plan_pipeline(config(), FACTS, rates(), 6, serving=1).notes)
    assert "1 GPU would have nothing to do: run.batch_size = 24 cannot be shared by 5 ranks; 25 can." in notes
    assert "set online.trainers=4" in notes
    assert "online.num_servers=2" in " ".join(plan_pipeline(config(), FACTS, rates(), 6).notes)
    set_already = config(online={"num_servers": 2, "trainers": 3})
    assert "For this split set online.trainers=4." in plan_pipeline(set_already, FACTS, rates(), 6).notes
    fits = config(online={"num_servers": 2, "trainers": 4})
    assert plan_pipeline(fits, FACTS, rates(), 6).notes == ()


def test_regenerated_answers_take_their_time_before_the_first_step():
    plan = plan_pipeline(config(online={"regenerate": True}), FACTS, rates(), 6, conversations=1200)
    assert plan.regenerate_seconds == pytest.approx(1200 * 100 / (2 * 50))


def test_without_a_number_of_conversations_there_is_no_epoch():
    plan = plan_pipeline(config(run={"max_steps": None, "epochs": 2}), FACTS, rates(), 6)
    assert plan.epoch_seconds is plan.run_seconds is plan.run_rows is None
    known = plan_pipeline(config(run={"max_steps": None, "epochs": 2}), FACTS, rates(), 6, conversations=100)
    assert known.run_rows == 216 and known.run_seconds == pytest.approx(216 * 200 / 2000)  # 9 steps of 24


def test_packed_rows_are_estimated_from_the_length_of_conversations_and_say_so():
    packed = config(data={"packing": True}, run={"max_steps": None, "epochs": 2})
    plan = plan_pipeline(packed, FACTS, rates(), 6, conversations=1200)
    assert (plan.epoch_rows, plan.epoch_rows_are) == (480, "about")  # 1200 x 200 / 500
    assert plan.epoch_seconds == pytest.approx(1200 * 200 / 2000)  # no more tokens than without packing
    assert (plan.run_rows, plan.run_rows_are, plan.run_seconds) == (960, "about", pytest.approx(960 * 500 / 2000))
    assert any("rows are estimated" in note and note.endswith("tokens of one are stated.") for note in plan.notes)
    assert training_flops(packed, FACTS, SHAPE, 500) == pytest.approx(
        0.4 * 989e12 / complete_rates({"length": Rate(200, "stated")}, packed, FACTS, SHAPE, "h100").training.value
    )
    unknown = plan_pipeline(packed, FACTS, complete_rates({}, packed, FACTS, SHAPE, "h100"), 6, conversations=1200)
    assert (unknown.epoch_rows, unknown.epoch_rows_are) == (1200, "at most")


def test_more_servers_and_a_slower_way_need_more_documents_in_flight():
    assert in_flight_needed(servers=1, ranks=8, reading=0.0) == 1
    assert in_flight_needed(servers=6, ranks=2, reading=0.0) == 6
    assert in_flight_needed(servers=6, ranks=2, reading=3.0) == 8


def test_assumed_rates_are_operations_over_what_the_gpu_is_taken_to_reach():
    # Target: per layer q, o 2*64*64, k, v 2*64*32, MLP 3*64*128, norms 2*64; final norm 64.
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 128
    assert prefill_flops(FACTS, 500) == 2 * (10 * layer + 64) + 2 * 500 * 64 * 10
    slots = 10 * 8
    draft_layer = 2 * slots * (2 * 64 * 64 + 3 * 64 * 128) + 4 * (500 + slots) * 64 * 32 + 4 * slots * (250 + 8) * 64
    forward = 2 * 500 * 2 * 64**2 + 3 * draft_layer + 2 * 10 * 7 * 64 * 1000
    assert training_flops(config(), FACTS, SHAPE, 500) == pytest.approx(3 * forward / 500)
    found = complete_rates({}, config(), FACTS, SHAPE, "b200")
    assert found.prefill.value == pytest.approx(0.4 * 2250e12 / prefill_flops(FACTS, 500))
    assert found.length.value == 500 and found.answer.value == 250
    for name in ("prefill", "training", "link", "length", "generation", "answer"):
        assert getattr(found, name).origin.startswith("assumed"), name


def test_what_was_only_assumed_is_named():
    given = {"prefill": Rate(1000, "stated"), "training": Rate(500, "measured in runs/x")}
    plan = plan_pipeline(config(), FACTS, complete_rates(given, config(), FACTS, SHAPE, "h100"), 6)
    assert any("only assumed: link, length." in note for note in plan.notes)
    assert not any("assumed" in note for note in plan_pipeline(config(), FACTS, rates(), 6).notes)


def write_run(folder, source: str, records: list[dict], world_size: int | None = None, *, packing=False):
    from dflash.config import dump_config

    folder.mkdir(parents=True)
    features = {"source": source} | ({"cache": "features"} if source == "cache" else {})
    data, size = {"train": ["talk.jsonl"], "packing": packing}, {"batch_size": 4, "device": "cpu"}
    tree = {"data": data, "features": features, "run": size}
    (folder / "config.yaml").write_text(dump_config(parse_config(tree, "test")))
    lines = [json.dumps(record) for record in records]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"kind": "tra']))  # cut, as that of a killed run
    if world_size:
        (folder / "checkpoints" / "step_0000010").mkdir(parents=True)
        (folder / "checkpoints" / "step_0000010" / "trainer.json").write_text(json.dumps({"world_size": world_size}))
    return folder


def record(number: int, **online) -> dict:
    server = {
        "address": "http://a:1", "gpus": 2, "busy_percent": 50.0, "requests": 2.0, "resting_ranks": 0,
    }  # fmt: skip
    values = {
        "ranks": 4, "seconds": 10.0, "documents": 50 * number, "tokens": 200_000 * number, "retries": 0,
        "store_full": 0, "tokens_per_s": 20_000.0, "bytes_per_s": 8e6, "wait_percent": 20.0, "read_percent": 10.0,
        "in_flight_limit": 96, "store_used_bytes": None, "store_capacity_bytes": None, "last_trouble": None,
        "servers": [server],
    }  # fmt: skip
    line = {"kind": "train", "step": number, "tokens": 1200, "tokens_per_s": 20_000.0, "data_wait_percent": 20.0}
    return line | ({"online": values | online} if online is not None else {})


def test_an_online_run_measures_every_rate(tmp_path):
    run = write_run(tmp_path / "a-run", "online", [record(1), record(2), record(3)])
    found = measured_rates(run)
    assert found["prefill"].value == pytest.approx(20_000 / 0.5 / 2)
    assert found["training"].value == pytest.approx(20_000 / 0.8 / 4)
    assert found["link"].value == pytest.approx(8e6 / 0.1 / 4)
    assert found["length"].value == 300
    assert {rate.origin for rate in found.values()} == {f"measured in {run}"}


def test_a_packed_run_measures_the_length_of_its_conversations_not_of_its_rows(tmp_path):
    found = measured_rates(write_run(tmp_path / "packed", "online", [record(1), record(2)], packing=True))
    assert found["length"].value == 200_000 / 50
    cached = [{key: value for key, value in record(n).items() if key != "online"} for n in (1, 2)]
    assert "length" not in measured_rates(write_run(tmp_path / "cached", "cache", cached, world_size=2, packing=True))


def test_a_run_that_regenerated_its_answers_measures_that_as_well(tmp_path):
    run = write_run(tmp_path / "a-run", "online", [record(1), record(2)])
    told = {"tokens": 6000, "conversations": 40, "last_sitting": {"tokens": 3000, "seconds": 30.0}}
    (run / "regenerated.jsonl.provenance.json").write_text(json.dumps(told))
    found = measured_rates(run)
    assert found["generation"].value == pytest.approx(3000 / 30 / 2)
    assert found["answer"].value == 150
    told = {"tokens": 0, "conversations": 0, "last_sitting": {"tokens": 0, "seconds": 0.1}}
    (run / "regenerated.jsonl.provenance.json").write_text(json.dumps(told))
    assert not {"generation", "answer"} & set(measured_rates(run))


def test_a_run_from_the_cache_measures_the_trainer(tmp_path):
    records = [{key: value for key, value in record(n).items() if key != "online"} for n in (1, 2, 3)]
    found = measured_rates(write_run(tmp_path / "cached", "cache", records, world_size=2))
    assert set(found) == {"training", "length"}
    assert found["training"].value == pytest.approx(20_000 / 0.8 / 2)


def test_records_of_another_version_are_passed_over_and_refused_where_there_are_no_others(tmp_path):
    records = [{key: value for key, value in record(n).items() if key != "online"} for n in (1, 2, 3)]
    older = [{**records[0], "data_wait_percent": None}, {"kind": "train", "tokens_per_s": 5.0}, [1], "?"]
    mixed, pure = (
        measured_rates(write_run(tmp_path / name, "cache", lines, world_size=2))
        for name, lines in (("mixed", [*older, *records]), ("pure", records))
    )
    assert mixed["training"].value == pure["training"].value and mixed["length"].value == pure["length"].value
    with pytest.raises(UserError, match="no record of its speed yet"):
        measured_rates(write_run(tmp_path / "older", "cache", older, world_size=2))


def test_runs_that_tell_no_rate_are_refused_with_the_reason(tmp_path):
    cached = [{key: value for key, value in record(1).items() if key != "online"}]
    for folder, reason in (
        (tmp_path / "nowhere", "is no run folder"),
        (write_run(tmp_path / "young", "online", []), "no record of its speed yet"),
        (write_run(tmp_path / "alone", "in_process", cached), "ran the target in its own process"),
        (write_run(tmp_path / "unsaved", "cache", cached), "no checkpoint that tells its number of ranks"),
        (write_run(tmp_path / "idle", "online", [record(1, tokens_per_s=0.0)]), "delivered nothing yet"),
    ):
        with pytest.raises(UserError, match=reason):
            measured_rates(folder)


def test_the_command_says_where_every_number_comes_from(tmp_path, capsys):
    run = write_run(tmp_path / "a-run", "online", [record(1), record(2)])
    command = ["plan", "qwen3-8b-8xh100", "--gpus", "8", "--run", str(run), "--train-rate", "9000"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    origin = {line[:38].strip(): line[38:] for line in lines if line.startswith("  ")}
    assert f"measured in {run}" in origin["target, tokens/s per serving GPU"]
    assert origin["trainer, tokens/s per training GPU"].endswith("stated")
    assert "measured" in origin["store to rank, GB/s"]
    assert any(line.startswith("Bytes per token: 40,960") for line in lines)
    assert main([*command, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["bytes_per_token"] == 40960 and plan["rates"]["training"] == {"value": 9000, "origin": "stated"}
    assert plan["split"]["serving"] + plan["split"]["training"] <= 8


def test_numbers_that_nobody_counted_are_called_bounds_and_a_time_without_end_is_still_told(capsys):
    assert main(["plan", "qwen3-8b-8xh100-online", "--train-rate", "0.001"]) == 0
    out = capsys.readouterr().out
    assert "for at most 799,744 rows" in out and "centuries" in out
    assert main(["plan", "qwen3-8b-8xh100-online", "data.packing=true", "--length", "512"]) == 0
    assert "for about 199,936 rows" in capsys.readouterr().out


def test_the_most_gpus_are_divided_at_once(capsys):
    assert main(["plan", "qwen3-8b-8xh100", "run.batch_size=4096", "--gpus", "4096", "--json"]) == 0
    splits = json.loads(capsys.readouterr().out)["splits"]
    assert len(splits) == 4095 and splits[1]["training"] == 2048


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["qwen3-8b-8xh100", "--gpus", "1"], "from 2 to 4,096"),
        (["qwen3-8b-8xh100", "--prefill-rate", "0"], "not a number from"),
        (["no-such-recipe"], "no-such-recipe"),
        (["qwen3-8b-8xh100", "online.tensor_parallel=9"], "cannot be divided"),
        (["qwen3-8b-8xh100", "target.name=some/unknown"], "sizes of target 'some/unknown'"),
        (["qwen3-8b-8xh100", "--run", "nowhere"], "no run folder"),
        (["qwen3-8b-8xh100", "--length", "1e9"], "--length 1e+09 is more than data.max_length = "),
        (["qwen3-8b-8xh100", "--gpus", "100000"], "not a whole number from 2 to 4,096"),
        (["qwen3-8b-8xh100", "--serving", "99999"], "not a whole number from 1 to 4,096"),
        (["qwen3-8b-8xh100", "online.num_servers=100000000"], "online.num_servers"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(arguments, complaint, capsys):
    try:
        code = main(["plan", *arguments])
    except SystemExit as error:  # argparse
        code = error.code
    said = capsys.readouterr().err
    assert code == 2 and complaint in said and "Traceback" not in said
