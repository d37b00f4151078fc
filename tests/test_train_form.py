"""The Train form comes from the typed config, and what is previewed is what the command line would run."""

import json
import shlex

import pytest
import yaml

from dflash.config import TrainConfig, load_config
from dflash.errors import UserError
from dflash.recipes import shipped_recipes
from workbench.form import about_origin, form_view, origins
from workbench.form_fields import as_text, field_of, form_sections
from workbench.plan_view import plan_view, summary, verdict
from workbench.run_reader import RunsRoot
from workbench.run_request import RunRequest, overrides, prepare

QUICK = "smollm2-135m-quick"


@pytest.fixture
def root(tmp_path, monkeypatch) -> RunsRoot:
    """A runs folder; relative data files are looked for beside it."""
    monkeypatch.chdir(tmp_path)
    return RunsRoot(tmp_path / "runs")


def with_data(tmp_path) -> dict[str, str]:
    lines = [json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})] * 40
    (tmp_path / "talks.jsonl").write_text("\n".join(lines))
    return {"data.train": str(tmp_path / "talks.jsonl")}


def fields_of(prepared) -> dict[str, dict]:
    return {field["setting"]: field for section in form_view(prepared)["sections"] for field in section["fields"]}


def test_every_setting_of_the_config_has_a_field():
    sections = form_sections()
    assert list(sections) == list(TrainConfig.model_fields)
    for name, field in TrainConfig.model_fields.items():
        assert [one.key for one in sections[name]] == list(field.annotation.model_fields)


def test_fields_know_their_kind_choices_and_defaults():
    assert field_of("schedule.kind").choices == ("wsd", "cosine", "linear", "constant")
    names = ("run.seed", "optimizer.lr", "data.packing", "data.train", "target.name")
    assert [field_of(name).kind for name in names] == ["number", "number", "bool", "texts", "text"]
    assert field_of("optimizer.lr").default == 6e-4
    assert field_of("draft.target_layer_ids").derived == "spread evenly"
    assert field_of("run.max_steps").usual and not field_of("optimizer.beta1").usual
    assert field_of("run.nothing") is None


@pytest.mark.parametrize("recipe", sorted(shipped_recipes()))
def test_an_untouched_recipe_is_previewed_as_the_command_line_reads_it(root, recipe):
    prepared = prepare(RunRequest(recipe), root)
    assert not prepared.plan.faults
    assert prepared.plan.config == load_config(shipped_recipes()[recipe])
    assert load_config_text(root, prepared.frozen) == prepared.plan.config
    assert about_origin(prepared).splitlines()[0] in shipped_recipes()[recipe].read_text()


def load_config_text(root: RunsRoot, text: str) -> TrainConfig:
    file = root.root.parent / "frozen.yaml"
    file.write_text(text)
    return load_config(file)


def test_typed_text_means_what_it_says(root, tmp_path):
    settings = {
        "optimizer.lr": "2e-3",
        "run.seed": " 7 ",
        "run.autocast": "false",
        "data.train": "a b.jsonl, 12",
        "draft.target_layer_ids": "1, 5, 9",
        "draft.num_features": "",
        "features.cache": "0012",
        "features.source": "cache",
        "target.name": "org/name: odd",
    }
    config = prepare(RunRequest(QUICK, settings), root).plan.config
    assert (config.optimizer.lr, config.run.seed, config.run.autocast) == (2e-3, 7, False)
    assert config.data.train == ["a b.jsonl", "12"]
    assert config.draft.target_layer_ids == [1, 5, 9] and config.draft.num_features == 3
    assert config.features.cache == "0012"
    assert config.target.name == "org/name: odd"


def test_the_shown_command_gives_the_same_config_in_a_terminal(root, tmp_path):
    settings = with_data(tmp_path) | {"run.max_steps": "12", "draft.init": "", "optimizer.lr": "1e-3"}
    prepared = prepare(RunRequest(QUICK, settings, "mine"), root)
    program, command, recipe, *rest = shlex.split(prepared.shown_command)
    assert (program, command, recipe) == ("dflash", "train", QUICK)
    assert rest[-4:] == ["--runs", "runs", "--name", "mine"]
    assert load_config(shipped_recipes()[recipe], rest[:-4]) == prepared.plan.config


def test_several_ranks_are_started_by_torchrun_and_resumed_by_it(root):
    prepared = prepare(RunRequest("qwen3-8b-8xh100", name="big", ranks=8), root)
    assert prepared.shown_command.startswith("torchrun --standalone --nproc-per-node 8 -m dflash train qwen3-8b-8xh100")
    assert prepared.command[1:6] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "8"]
    assert prepared.command[-6:] == ["train", "{config}", "--runs", str(root.root), "--name", "big"]
    assert prepared.resume_command[-2:] == ["--resume", str(root.root / "big")]
    assert prepared.plan.estimate.world_size == 8
    assert [d["role"] for d in plan_view(prepared)["devices"]] == ["both"] * 8


def test_an_online_run_is_started_by_dflash_itself_and_splits_the_gpus(root, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5")
    settings = {
        "features.source": "online",
        "online.num_servers": "1",
        "online.tensor_parallel": "2",
        "online.trainers": "4",
        "data.min_supervised": "16",
    }
    prepared = prepare(RunRequest("qwen3-8b-8xh100", settings, ranks=3), root)
    assert prepared.launches_itself and prepared.shown_command.startswith("dflash train qwen3-8b-8xh100")
    assert prepared.plan.estimate.world_size == 4
    devices = plan_view(prepared)["devices"]
    assert [(d["name"], d["role"]) for d in devices] == [
        ("GPU 0", "serves"), ("GPU 1", "serves"), *((f"GPU {i}", "trains") for i in range(2, 6))
    ]  # fmt: skip


def test_a_fault_stands_beside_its_field_in_the_configs_own_words(root):
    settings = {"run.batch_size": "many", "optimizer.min_lr": "1", "schedule.decay_style": "zigzag", "run.nothing": "1"}
    prepared = prepare(RunRequest(QUICK, settings), root)
    fields = fields_of(prepared)
    assert fields["run.batch_size"]["complaints"] == ["run.batch_size = 'many' is not usable: give a whole number."]
    assert fields["run.batch_size"]["text"] == "many" and fields["run.batch_size"]["edited"]
    assert "is above optimizer.lr" in fields["optimizer.min_lr"]["complaints"][0]
    assert "is no choice here" in fields["schedule.decay_style"]["complaints"][0]
    assert fields["run.seed"]["complaints"] == []
    assert verdict(prepared) == "4 settings have to change first."
    assert any("run.nothing" in sentence for sentence in summary(prepared)["faults"])


def test_what_is_missing_here_is_no_fault_of_the_config(root):
    prepared = prepare(RunRequest(QUICK), root)
    assert not prepared.plan.faults and verdict(prepared) == "One thing is missing on this machine."
    assert "does not exist" in fields_of(prepared)["data.train"]["complaints"][0]


def test_fields_tell_given_changed_and_default_values_apart(root):
    settings = {"run.max_steps": "5", "run.batch_size": "4", "draft.init": ""}
    fields = fields_of(prepare(RunRequest(QUICK, settings), root))
    assert (fields["run.max_steps"]["given"], fields["run.max_steps"]["text"]) == ("100", "5")
    assert fields["run.max_steps"]["edited"]
    assert not fields["run.batch_size"]["edited"]  # typed, but what the recipe says anyway
    assert fields["draft.init"]["edited"] and fields["draft.init"]["resolved"] == "random"
    assert fields["optimizer.beta1"]["text"] == "" and fields["optimizer.beta1"]["resolved"] == "0.9"


def test_a_setting_without_effect_says_why(root):
    idle = fields_of(prepare(RunRequest(QUICK), root))["features.cache"]["idle"]
    assert "features.source is not 'cache'" in idle
    prepared = prepare(RunRequest(QUICK, {"features.source": "cache", "features.cache": "x"}), root)
    assert fields_of(prepared)["features.cache"]["idle"] is None


def test_a_run_can_start_from_an_earlier_one(root):
    (root.root / "before").mkdir(parents=True)
    first = prepare(RunRequest(QUICK, {"run.seed": "5"}), root)
    (root.root / "before" / "config.yaml").write_text(first.frozen)
    again = prepare(RunRequest("run:before", {"run.max_steps": "7"}), root)
    assert again.plan.config.run.seed == 5 and again.plan.config.run.max_steps == 7
    assert again.name.startswith("before-")
    assert fields_of(again)["run.seed"]["given"] == "5"
    assert ["run:before", "before"] in origins(root.names())[1]["choices"]


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (RunRequest("no-such-recipe"), "There is no recipe 'no-such-recipe'"),
        (RunRequest("/etc/passwd"), "There is no recipe"),
        (RunRequest("run:../../etc"), "no plain name"),
        (RunRequest("run:gone"), "no run 'gone'"),
        (RunRequest(QUICK, name="../up"), "no plain name"),
        (RunRequest(QUICK, ranks=0), "0 training processes"),
        (RunRequest(QUICK, {"run": "1"}), "not of the form section.key"),
    ],
)
def test_impossible_requests_are_one_sentence(root, request_, sentence):
    with pytest.raises(UserError, match=sentence):
        prepare(request_, root)


def test_a_link_carries_origin_changes_name_and_ranks():
    default = RunRequest(QUICK)
    query = {"from": "qwen3-4b-1gpu", "run.seed": "3", "name": "x", "ranks": "2", "__theme": "dark"}
    assert RunRequest.from_query(query, default) == RunRequest("qwen3-4b-1gpu", {"run.seed": "3"}, "x", 2)
    assert RunRequest.from_query({"run": "before"}, default).origin == "run:before"
    assert RunRequest.from_query({"__theme": "dark"}, default) is default
    with pytest.raises(UserError, match="no run"):
        RunRequest.from_query({"from": QUICK, "ranks": "many"}, default)


def test_overrides_of_the_api_are_the_command_lines():
    request = RunRequest.from_overrides(QUICK, ["run.seed=3", "draft.init=null"], "x", 1)
    assert request.settings == {"run.seed": "3", "draft.init": ""}
    assert overrides(request.settings) == ["run.seed=3", "draft.init=null"]
    with pytest.raises(UserError, match="not of the form"):
        RunRequest.from_overrides(QUICK, ["run.seed"], "x", 1)


@pytest.mark.parametrize(
    "value", [None, [], {"settings": {}}, {"origin": "x", "settings": 3}, {"origin": "x", "ranks": "y"}]
)
def test_what_is_no_request_is_refused(value):
    with pytest.raises(UserError, match="reload"):
        RunRequest.from_json(value)


@pytest.mark.parametrize(
    ("value", "text"), [(None, ""), (True, "true"), (0.0025, "0.0025"), (6e-4, "0.0006"), ([1, 2], "1, 2")]
)
def test_values_are_shown_as_they_are_typed(value, text):
    assert as_text(value) == text
    assert value is None or yaml.safe_load(f"[{text}]" if isinstance(value, list) else text) == value


def test_an_origin_begins_with_its_own_number_of_processes(root, tmp_path, monkeypatch):
    monkeypatch.setattr("workbench.run_request.gpu_count", lambda: 8)
    ship = root.root / "ship"
    (ship / "checkpoints" / "step_0000005").mkdir(parents=True)
    (ship / "config.yaml").write_text("run: {device: cpu}\n")
    (ship / "checkpoints" / "step_0000005" / "trainer.json").write_text('{"world_size": 3}')
    ranks = {name: prepare(RunRequest.from_json({"origin": name, "ranks": None}), root).request.ranks
             for name in (QUICK, "qwen3-8b-8xh100", "run:ship")}  # fmt: skip
    assert ranks["run:ship"] == 3
    assert ranks["qwen3-8b-8xh100"] == 8
    assert prepare(RunRequest("qwen3-8b-8xh100", ranks=1), root).request.ranks == 1


def test_a_plan_that_takes_more_memory_than_there_is_is_no_plain_ready(root, tmp_path, monkeypatch):
    monkeypatch.setattr("dflash.training.readiness.memory_of", lambda kind: 1 << 20)
    prepared = prepare(RunRequest(QUICK, with_data(tmp_path)), root)
    assert "Ready" not in verdict(prepared)
    (sentence,) = fields_of(prepared)["run.micro_batch_size"]["complaints"]
    assert "0.0 GiB" in sentence and sentence in plan_view(prepared)["remarks"]
