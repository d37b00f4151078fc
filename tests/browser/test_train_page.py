"""The Train page in a real browser, on a workbench in a process of its own that is killed for real."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

import pytest
import waiting
from ending_jobs import end_all
from tiny_runs import write_conversations

from workbench.jobs import Jobs

until = partial(waiting.until, seconds=240.0)

pytestmark = pytest.mark.browser
ROOT = Path(__file__).resolve().parents[2]
ENDLESS = "1000000"  # steps: it runs until it is stopped


class Workbench:
    """`python app.py` on the tiny target, in a folder of its own."""

    def __init__(self, folder: Path, target: str) -> None:
        self.folder, self.target, self.runs = folder, target, folder / "runs"
        self.data = write_conversations(folder / "talks.jsonl")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        options = ["--no-browser", "--port", str(self.port), "--target", self.target, "--device", "cpu"]
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "app.py"), *options, "--runs", str(self.runs)],
            cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 240
        while True:
            try:
                urllib.request.urlopen(self.address, timeout=5).read(1)
                return
            except OSError:
                assert self.process.poll() is None and time.monotonic() < deadline, "the workbench did not start"
                time.sleep(0.2)

    def kill(self) -> None:
        """As a crash or the kernel would end it: the whole process group, at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def link(self, name: str, **changes: str) -> str:
        """The page with a tiny config: two layers, rows of 128 tokens, fp32."""
        settings = {
            "from": "smollm2-135m-quick",
            "name": name,
            "target.name": self.target,
            "target.dtype": "float32",
            "draft.num_features": "3",
            "draft.block_size": "4",
            "draft.init": "random",
            "data.train": self.data,
            "data.validation_size": "2",
            "data.max_length": "128",
            "blocks.num_anchors": "8",
            "objective.candidates": "",
            "optimizer.name": "adamw",
            "run.max_steps": ENDLESS,
            "run.batch_size": "2",
            "run.autocast": "false",
            "run.device": "cpu",
            "checkpoint.every": "50",
            "metrics.log_every": "1",
        }
        return "train?" + urlencode({**settings, **changes})

    def step(self, name: str) -> int:
        """The last step that the run has written down."""
        try:
            lines = (self.runs / name / "metrics.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return 0
        return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


@pytest.fixture(scope="module")
def bench(tiny_target_folder, tmp_path_factory):
    bench = Workbench(tmp_path_factory.mktemp("train-page"), tiny_target_folder)
    bench.start()
    yield bench
    bench.kill()
    end_all(Jobs(bench.runs))


@pytest.fixture
def tab(visit_at, bench):
    """Opens pages of that workbench."""

    def start(path: str, **window):
        page = visit_at(bench.address, path, **window).page
        page.set_default_timeout(240_000)  # a run begins with loading torch, on a machine that does other things
        page.wait_for_selector(".df-field")
        page.wait_for_timeout(1_000)  # the page asks its first questions
        return page

    return start


def wait_for_state(page, name: str, *states: str) -> None:
    page.wait_for_function(
        "([name, states]) => states.includes(document.querySelector(`.df-job[data-name='${name}']`)?.dataset.state)",
        arg=[name, list(states)],
    )


def press(page, name: str, action: str) -> None:
    page.click(f".df-job[data-name='{name}'] button:text-is('{action}')")


def number(page, label: str) -> str:
    return page.inner_text(f".df-numbers div:has(dt:text-is('{label}')) dd")


def test_a_fresh_machine_is_told_what_is_missing_and_how_to_make_it(tab, bench):
    page = tab(bench.link("fresh", **{"data.train": "data/quick.jsonl"}))
    assert page.input_value(".df-origin") == "smollm2-135m-quick"
    assert "does not exist" in page.inner_text(".df-trouble")
    assert page.inner_text(".df-make pre").startswith("dflash synthesize --out data/quick.jsonl --self-instruct")
    assert page.is_disabled(".df-start") and page.is_enabled(".df-make-data")


def test_the_plan_follows_as_one_edits(tab, bench):
    page = tab(bench.link("edited"))
    page.wait_for_selector(".df-verdict[data-ready='true']")
    assert "run.max_steps=1000000" in page.inner_text(".df-shown-command pre")
    page.fill("#df-run-max_steps", "40")
    page.wait_for_function("document.querySelector('.df-numbers dd').textContent === '40'")
    assert number(page, "Tokens").startswith("10,240")
    assert "run.max_steps=40" in page.inner_text(".df-shown-command pre")
    assert "max_steps: 40" in page.text_content(".df-yaml pre")
    assert "run.max_steps=40" in page.evaluate("location.search")
    page.wait_for_function("document.querySelector('#rates .xtick:last-child').textContent.trim() === '40'")
    assert page.evaluate("document.activeElement.id") == "df-run-max_steps"  # no answer takes the focus away


def test_a_fault_is_told_beside_its_field_and_blocks_the_start(tab, bench):
    page = tab(bench.link("faulty"))
    page.fill("#df-run-batch_size", "many")
    page.wait_for_selector(".df-field.faulty #df-run-batch_size")
    error = page.inner_text("#df-run-batch_size-error")
    assert error == "run.batch_size = 'many' is not usable: give a whole number."
    assert page.get_attribute("#df-run-batch_size", "aria-invalid") == "true"
    assert page.is_disabled(".df-start") and page.is_disabled(".df-queue")
    page.click(".df-field:has(#df-run-batch_size) .df-reset")
    page.wait_for_selector(".df-field:not(.faulty) #df-run-batch_size")


def test_a_run_name_that_cannot_be_is_no_longer_called_ready(tab):
    page = tab("train")
    page.wait_for_function("document.querySelector('.df-verdict').textContent")
    page.fill(".df-run-name", "../evil")
    page.wait_for_selector(".df-verdict:has-text('The last change cannot be used')")
    assert page.is_disabled(".df-start") and page.is_disabled(".df-queue")
    page.fill(".df-run-name", "good")
    page.wait_for_function("document.querySelector('.df-shown-command pre').textContent.includes('--name good')")
    assert "cannot be used" not in page.text_content(".df-verdict")


def test_settings_are_searched_and_the_rest_is_folded_away(tab):
    page = tab("train")
    assert page.is_hidden("#df-optimizer-beta1") and page.is_visible("#df-optimizer-lr")
    page.click(".df-section#df-section-optimizer .df-more")
    assert page.is_visible("#df-optimizer-beta1")
    page.fill(".df-search", "mooncake")
    assert page.is_visible("#df-online-master") and page.is_hidden("#df-optimizer-lr")
    page.fill(".df-search", "lr warm-up")
    assert page.is_visible("#df-schedule-warmup_ratio") and page.is_hidden("#df-online-master")
    page.fill(".df-search", "no such thing")
    assert page.is_visible(".df-nothing")
    page.fill(".df-search", "")
    page.click(".df-changed")
    assert page.inner_text(".df-nothing") == "Nothing is changed yet."


def test_a_run_survives_reload_and_the_death_of_the_workbench_and_is_stopped_and_resumed(tab, bench):
    page = tab(bench.link("long"))
    page.click(".df-start")
    wait_for_state(page, "long", "running")
    until(lambda: bench.step("long") > 2)
    page.reload()
    wait_for_state(page, "long", "running")
    page.wait_for_function("/step \\d+ of 1,000,000/.test(document.querySelector('.df-job-words').textContent)")
    page.goto("about:blank")

    bench.kill()
    before = bench.step("long")
    until(lambda: bench.step("long") > before + 2)  # nobody serves, and it goes on
    bench.start()

    page = tab("train")
    wait_for_state(page, "long", "running")
    press(page, "long", "Stop")
    wait_for_state(page, "long", "stopped")
    stopped_at = bench.step("long")
    assert any((bench.runs / "long" / "checkpoints").glob("step_*"))
    press(page, "long", "Resume")
    wait_for_state(page, "long", "running")
    until(lambda: bench.step("long") > stopped_at)
    press(page, "long", "Stop")
    wait_for_state(page, "long", "stopped")
    steps = [json.loads(line)["step"] for line in (bench.runs / "long" / "metrics.jsonl").read_text().splitlines()
             if json.loads(line)["kind"] == "train"]  # fmt: skip
    assert steps == sorted(set(steps))  # one curve: nothing twice, nothing started afresh


def test_queued_runs_take_turns_and_can_be_aborted(tab, bench):
    page = tab(bench.link("first"))
    page.click(".df-start")
    wait_for_state(page, "first", "running")
    for name in ("second", "third"):
        page = tab(bench.link(name, **{"run.max_steps": "3"}))
        page.click(".df-queue")
        wait_for_state(page, name, "queued")
    assert "next in the queue" in page.inner_text(".df-job[data-name='second']")
    press(page, "second", "Abort")
    page.wait_for_selector(".df-job[data-name='second']", state="detached")
    press(page, "first", "Stop")
    wait_for_state(page, "third", "done")
    assert bench.step("third") == 3 and not (bench.runs / "second").exists()


def test_a_run_that_fails_says_why(tab, bench, tmp_path):
    empty = tmp_path / "short.jsonl"
    empty.write_text((bench.folder / "talks.jsonl").read_text().replace("one two three four", ""))
    page = tab(bench.link("failing", **{"data.min_supervised": "100", "data.train": str(empty)}))
    page.click(".df-start")
    wait_for_state(page, "failing", "failed")
    problem = page.inner_text(".df-job[data-name='failing'] .df-job-problem")
    assert "data.min_supervised" in problem or "conversation" in problem
    page.click(".df-job[data-name='failing'] summary")
    assert "dflash:" in page.inner_text(".df-job[data-name='failing'] pre")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone(tab, scheme):
    page = tab("train", width=360, scheme=scheme)
    page.click(".df-all")
    assert page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]") == [360, 360]
