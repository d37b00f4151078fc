"""The online section: what is refused before anything starts, who runs where, and what a plan prints."""

import json
import socket
import subprocess
import sys

import pytest
import yaml

from dflash.cli.main import main
from dflash.config import dump_config, load_config, parse_config
from dflash.errors import UserError
from dflash.online.deployment import Deployment, trainers_of
from dflash.online.endpoints import Endpoints
from dflash.online.gpus import gpus_of_server, split, visible_gpus
from dflash.online.ports import free_port
from dflash.online.serving import overrides_for_ranks
from dflash.online.store_size import SMALLEST_SEGMENT, document_bytes, needed_bytes, segment_bytes
from dflash.target_facts import target_facts
from dflash.training.plan import plan_run

ELSEWHERE = {"servers": ["http://10.0.0.1:30000"], "master": "10.0.0.1:50051"}


@pytest.fixture
def tree(tmp_path):
    """Qwen3-8B on GPUs, 3 servers and 5 ranks."""
    talk = tmp_path / "talk.jsonl"
    talk.write_text('{"messages": []}\n' * 100)
    return {
        "target": {"name": "Qwen/Qwen3-8B"},
        "data": {"train": [str(talk)], "validation_size": 2, "max_length": 2048},
        "features": {"source": "online"},
        "online": {"num_servers": 3, "trainers": 5},
        "run": {"device": "cuda", "batch_size": 40},
    }


@pytest.fixture
def eight_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")


def deployment_of(tree: dict, **options) -> Deployment:
    config = parse_config(tree, "test")
    facts = target_facts(config.target.name)
    return Deployment.of(config, facts, (1, 9, 17, 25, 33), trainers_of(config), **options)


@pytest.mark.parametrize(
    ("online", "said"),
    [
        ({"servers": ["10.0.0.1:30000"], "master": "a:1"}, "names '10.0.0.1:30000', which is no address of a server"),
        ({"servers": ["http://a:1", "http://a:1/"], "master": "a:2"}, "names a server twice"),
        ({"servers": ["http://a:1"]}, "needs online.master"),
        ({"master": "a"}, "online.master = 'a' is not of the form host:port"),
        ({"context_length": 2050}, "online.context_length = 2050 is too short for rows of data.max_length = 2048"),
        ({"port": 50050, "num_servers": 4}, "online.master_port = 50051 is the port of a server"),
        ({"master_port": 50052}, "online.master_port = 50052 is online.metrics_port as well"),
        ({"port": 65534, "num_servers": 4}, "set it to 65532 or less"),
        ({**ELSEWHERE, "num_servers": 2}, "online.num_servers = 2 has no effect, since online.servers names servers"),
        ({**ELSEWHERE, "on_failure": "restart"}, "online.on_failure = 'restart' has no effect"),
        ({"master": "a:1", "master_port": 50100}, "online.master_port = 50100 has no effect"),
        ({"max_restarts": 2}, "online.max_restarts = 2 has no effect"),
        ({"rdma_devices": ["mlx5_0"]}, "online.rdma_devices = ['mlx5_0'] has no effect"),
    ],
)
def test_contradictions_and_settings_without_effect_are_refused(tree, online, said):
    with pytest.raises(UserError) as error:
        parse_config(tree | {"online": online}, "test")
    assert said in str(error.value)


def test_settings_of_online_training_have_no_effect_elsewhere(tree):
    tree["features"] = {"source": "in_process"}
    with pytest.raises(UserError, match=r"online.num_servers = 3 has no effect, since features.source is not 'online'"):
        parse_config(tree, "test")


def test_answers_that_fill_no_block_are_left_out_or_refused(tree):
    assert parse_config(tree, "test").data.min_supervised == 16
    tree["data"]["min_supervised"] = 15
    with pytest.raises(UserError, match="data.min_supervised = 15 .* set data.min_supervised=16 or more"):
        parse_config(tree, "test")


def test_a_written_config_loads_as_it_was_with_servers_here_and_elsewhere(tree, tmp_path):
    for online in (tree["online"], ELSEWHERE):
        config = parse_config(tree | {"online": online}, "test")
        (tmp_path / "config.yaml").write_text(dump_config(config))
        assert load_config(tmp_path / "config.yaml") == config


def test_all_that_a_machine_lacks_is_said_at_once(tree, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        tree["online"] |= {"port": taken.getsockname()[1], "environment": str(tmp_path / "none"), "store_gib": 1000.0}
        plan = plan_run(tree, "test", tmp_path / "run")
    said = "\n".join(complaint.sentence for complaint in plan.lacking)
    assert "5 training rank(s) take 8 GPUs, but 3 are visible here" in said
    assert f"port {tree['online']['port']} on 127.0.0.1 cannot be used (Address already in use)" in said
    assert "none' does not exist: run 'dflash engines install" in said
    assert "would lend 3000 GiB to the store" in said
    assert not plan.faults


@pytest.mark.parametrize("host", ["999.1.1.1", "a..b", "203.0.113.7"])
def test_a_host_that_is_not_this_machine_is_one_complaint(tree, tmp_path, host):
    tree["online"]["host"] = host
    lacking = plan_run(tree, "test", tmp_path / "run").lacking
    told = [complaint.sentence for complaint in lacking if host in complaint.sentence]
    assert len(told) == 1 and told[0].startswith(f"online.host = {host!r} is no address of this machine (")
    assert not any("port" in complaint.sentence for complaint in lacking)


def test_a_store_that_cannot_hold_what_is_in_flight_is_refused_with_the_size_it_takes(tree, tmp_path):
    tree["online"]["store_gib"] = 2
    (fault,) = plan_run(tree, "test", tmp_path / "run").faults
    # 5 ranks x 16 documents x 2048 tokens x 5 layers x 4096 x 2 bytes = 6.25 GiB over three servers
    assert "online.store_gib = 2 on 3 server(s) is less than the 6.25 GiB that 5 rank(s)" in fault.sentence
    tree["online"]["store_gib"] = float(fault.sentence.partition("set it to ")[2].split()[0])
    assert not plan_run(tree, "test", tmp_path / "run").faults


def test_rows_that_leave_sglang_no_position_are_refused(tree, tmp_path):
    tree["data"]["max_length"] = 40960
    tree["online"] |= {"in_flight": 1}
    (fault,) = plan_run(tree, "test", tmp_path / "run").faults
    assert "set data.max_length=40952 or less" in fault.sentence


def test_servers_and_ranks_share_the_gpus_and_nobody_gets_one_twice(tree, eight_gpus):
    tree["online"] |= {"num_servers": 2, "tensor_parallel": 2, "trainers": 4}
    deployment = deployment_of(tree)
    assert [server.gpus for server in deployment.servers] == [("0", "1"), ("2", "3")]
    assert deployment.trainer_gpus == ("4", "5", "6", "7")
    assert [server.port for server in deployment.servers] == [30000, 30001]
    assert "--tp-size=2" in deployment.servers[0].arguments()
    assert deployment.endpoints.servers == ("http://127.0.0.1:30000", "http://127.0.0.1:30001")
    assert deployment.endpoints.gpus == 2


def test_without_a_number_every_gpu_that_no_server_has_trains(tree, eight_gpus):
    del tree["online"]["trainers"]
    assert trainers_of(parse_config(tree, "test")) == 5
    assert split(("a", "b", "c"), 1, 2, 1) == ([("a", "b")], ("c",))
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "GPU-1f, GPU-2e"}) == ("GPU-1f", "GPU-2e")
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == visible_gpus({"CUDA_VISIBLE_DEVICES": "-1"}) == ()


def test_gpus_that_the_driver_does_not_have_are_not_visible_whatever_is_listed(tmp_path):
    driver = tmp_path / "gpus"
    for bus in ("0000:01:00.0", "0000:02:00.0"):
        (driver / bus).mkdir(parents=True)

    def seen(listed: str, folder=driver) -> tuple[str, ...]:
        return visible_gpus({"CUDA_VISIBLE_DEVICES": listed}, folder)

    assert visible_gpus({}, driver) == seen("0,1,2,3,4,5,6,7") == ("0", "1")
    assert seen("1, 0") == ("1", "0")
    assert seen("1,9,0") == seen("1,-1,0") == ("1",)  # CUDA stops at the first that is none
    assert seen("GPU-1f, GPU-2e, MIG-3") == ("GPU-1f", "GPU-2e", "MIG-3")
    # Where /proc does not tell of the driver, nobody but the list knows.
    assert seen("0,1,2", tmp_path / "none") == ("0", "1", "2") and visible_gpus({}, tmp_path / "none") == ()


@pytest.mark.parametrize(
    ("info", "gpus"),
    [
        ({"device": "cpu", "tp_size": 2}, 0),
        ({"device": "cuda"}, 1),
        ({"device": "cuda", "tp_size": 2, "pp_size": 3, "dp_size": 4}, 24),
        ({"device": "cuda", "tp_size": 8, "pp_size": 1, "dp_size": 4, "enable_dp_attention": True}, 8),
    ],
)
def test_a_running_servers_gpus_are_those_of_all_its_replicas(info, gpus):
    assert gpus_of_server(info) == gpus


def test_the_store_is_large_enough_even_with_a_server_down(tree):
    config, facts = parse_config(tree, "test"), target_facts("Qwen/Qwen3-8B")
    need = needed_bytes(config, facts, 5)
    assert need == 5 * 16 * document_bytes(config, facts) == 5 * 16 * 2048 * 5 * 4096 * 2
    assert 2 * segment_bytes(config, facts, 5) >= need
    tree["online"] |= {"in_flight": 1, "num_servers": 1}
    tree["data"]["max_length"] = 64
    assert segment_bytes(parse_config(tree, "test"), facts, 1) == SMALLEST_SEGMENT


def test_ranks_elsewhere_size_the_store_and_take_no_gpu_here(tree, eight_gpus):
    tree["online"] |= {"num_servers": 8, "trainers": 16, "host": "10.0.0.1"}
    deployment = deployment_of(tree, trains_here=False)
    assert deployment.gpus == 8 and not deployment.trainer_gpus
    assert deployment.needed_bytes == 16 * 16 * 2048 * 5 * 4096 * 2
    assert deployment.endpoints.servers[7] == "http://10.0.0.1:30007"
    assert deployment.endpoints.master == deployment.capture.master == "10.0.0.1:50051"
    assert {"--host=10.0.0.1", "--port=30007"} <= set(deployment.servers[7].arguments())


def test_a_dry_run_prints_the_split_the_store_and_every_command(tree, tmp_path, eight_gpus, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    assert main(["train", str(path), "--dry-run", "optimizer.lr=1e-3", "--runs", "somewhere", "--name", "x"]) == 0
    out = capsys.readouterr().out
    for part in ("Server 2: http://127.0.0.1:30002 on GPU 2, layers [1, 9, 17, 25, 33]",
                 "Ranks: 5 on GPU 3, 4, 5, 6, 7",
                 "at most 6.25 GiB in flight", "Command of master: mooncake_master --rpc_address=127.0.0.1",
                 "CUDA_VISIBLE_DEVICES=3,4,5,6,7", "-m torch.distributed.run --standalone --nproc-per-node=5",
                 f"-m dflash train {path} optimizer.lr=1e-3 --runs=somewhere --name=x"):  # fmt: skip
        assert part in out
    assert main(["train", str(path), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert sorted(plan["processes"]) == ["master", "ranks", "server 0", "server 1", "server 2"]
    assert plan["derived"]["world_size"] == 5 and plan["derived"]["accumulation"] == 8


def test_a_dry_run_needs_neither_torch_nor_the_engines(tree, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    code = (
        "import sys; from dflash.cli.main import main\n"
        f"assert main(['train', {str(path)!r}, '--dry-run', '--json']) == 0\n"
        "sys.exit(bool({'torch', 'mooncake', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_torchrun_without_servers_is_told_to_leave_it_to_the_launcher(tree, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="plain `dflash train`.*leave out torchrun"):
        Endpoints.of(parse_config(tree, "test"))
    there = Endpoints.of(parse_config(tree | {"online": ELSEWHERE | {"host": "10.0.0.9"}}, "test"))
    assert (there.master, there.metrics, there.host) == ("10.0.0.1:50051", "10.0.0.1:50052", "10.0.0.9")
    launched = Endpoints(("http://127.0.0.1:1",), "127.0.0.1:2", "127.0.0.1:3", gpus=2, proved=True)
    assert Endpoints.of(parse_config(tree, "test"), launched.environment()) == launched


def test_servers_that_do_not_answer_are_named_before_anything_is_loaded(tree, tmp_path):
    port, master = free_port(), free_port()
    tree["online"] = {"servers": [f"http://127.0.0.1:{port}"], "master": f"127.0.0.1:{master}"}
    said = "\n".join(complaint.sentence for complaint in plan_run(tree, "test", tmp_path / "run", 5).lacking)
    assert f"online.servers names http://127.0.0.1:{port}, where nothing answers" in said
    assert f"online.master = '127.0.0.1:{master}': nothing answers there" in said


def test_serve_target_takes_the_same_config_and_says_what_training_adds(tree, tmp_path, eight_gpus, capsys):
    here = tree | {"online": tree["online"] | {"host": "10.0.0.1"}}
    overrides = overrides_for_ranks(parse_config(here, "test"), deployment_of(here))
    assert overrides[0].startswith("online.servers=[http://10.0.0.1:30000,http://10.0.0.1:30001")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(here))
    assert load_config(path, overrides).online.servers[2] == "http://10.0.0.1:30002"
    del tree["online"]["trainers"]
    path.write_text(yaml.safe_dump(tree))
    assert main(["serve-target", str(path)]) == 2
    assert "online.trainers is not set, so nobody knows how large the store has to be" in capsys.readouterr().err
