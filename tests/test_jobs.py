"""Jobs with real processes: they outlive whoever started them, are told apart, stopped, queued and found again."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import psutil
import pytest
import waiting
from ending_jobs import end_all

from dflash.errors import UserError
from workbench.job import tail
from workbench.jobs import Jobs
from workbench.process import ProcessId

until = partial(waiting.until, seconds=60.0)

SLEEP = [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(600)"]
SAVES = [
    sys.executable,
    "-c",
    "import signal, sys, time\n"
    "signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit(130)))\n"
    "print('begun', flush=True)\n"
    "time.sleep(600)",
]
DEAF = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('begun', flush=True); time.sleep(600)",
]


@pytest.fixture
def jobs(tmp_path):
    """Whatever a test leaves running is ended."""
    jobs = Jobs(tmp_path / "runs")
    yield jobs
    end_all(jobs)


def begun(jobs: Jobs, name: str) -> None:
    until(lambda: "begun" in jobs.get(name).log_tail())


def over(jobs: Jobs, name: str):
    until(lambda: not jobs.get(name).active)
    return jobs.get(name)


def python(source: str, *arguments) -> subprocess.Popen:
    """A process of its own, as another workbench would be."""
    return subprocess.Popen([sys.executable, "-c", source, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


def test_output_exit_code_and_times_of_a_job_are_kept(jobs):
    both = "print('out'); import sys; print('err', file=sys.stderr)"
    job = jobs.start([sys.executable, "-c", both], kind="train", name="a")
    assert job.state == "running" and job.process.pid != os.getpid()
    job = over(jobs, "a")
    assert (job.state, job.exit_code, job.likely_cause) == ("done", 0, None)
    assert job.log_tail().splitlines() == ["out", "err"]
    assert job.created <= job.started <= job.ended


def test_a_job_survives_the_death_of_the_workbench_that_started_it(jobs):
    workbench = python(
        "import os, signal, sys\n"
        "from workbench.jobs import Jobs\n"
        f"Jobs(sys.argv[1]).start({SAVES!r}, kind='train', name='a')\n"
        "os.killpg(os.setpgid(0, 0) or os.getpid(), signal.SIGKILL)",
        jobs.root,
    )
    assert workbench.wait() == -signal.SIGKILL
    begun(jobs, "a")
    assert jobs.get("a").state == "running"
    jobs.stop("a")
    assert over(jobs, "a").state == "stopped"


def test_a_stopped_job_saves_first(jobs):
    jobs.start(SAVES, kind="train", name="a")
    begun(jobs, "a")
    assert jobs.stop("a").stopping
    job = over(jobs, "a")
    assert (job.state, job.exit_code, job.log_tail()) == ("stopped", 130, "begun\nsaved")
    assert job.likely_cause is None
    with pytest.raises(UserError, match="does not run"):
        jobs.stop("a")


def test_a_job_that_ignores_the_stop_is_killed_after_the_grace(jobs):
    jobs.start(DEAF, kind="train", name="a")
    begun(jobs, "a")
    jobs.stop("a", grace=30)
    jobs.stop("a", grace=0.3)  # the second one shortens what is left
    job = over(jobs, "a")
    assert (job.state, job.exit_code) == ("stopped", -9)
    assert "did not stop in time" in job.likely_cause


@pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux only")
def test_nothing_of_a_job_is_left_behind_even_in_sessions_of_its_own(jobs, tmp_path):
    note = tmp_path / "pid"
    source = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen({DEAF!r}, start_new_session=True)\n"
        f"open({str(note)!r}, 'w').write(str(child.pid))\n"
        "print('begun', flush=True)\n"
    )
    jobs.start([sys.executable, "-c", source + "time.sleep(600)"], kind="train", name="stopped")
    begun(jobs, "stopped")
    child = ProcessId.of(int(note.read_text()))
    jobs.stop("stopped", grace=0.3)
    over(jobs, "stopped")
    assert not child.is_alive()


def test_a_job_whose_keeper_is_killed_goes_on_and_can_be_stopped(jobs):
    job = jobs.start(SAVES, kind="train", name="a")
    begun(jobs, "a")
    os.kill(job.keeper.pid, signal.SIGKILL)
    until(lambda: not job.keeper.is_alive())
    assert jobs.get("a").state == "running"
    jobs.stop("a")
    assert over(jobs, "a").log_tail() == "begun\nsaved"
    assert jobs.get("a").state == "lost" and "without having said how" in jobs.get("a").likely_cause


def test_without_a_keeper_too_a_launcher_ends_its_parts_itself_and_what_it_leaves_is_killed(jobs, tmp_path):
    """Parts in sessions of their own, as servers and ranks are; the launcher waits for one and forgets the other."""
    note = tmp_path / "pids"
    source = (
        "import signal, subprocess, sys, time\n"
        f"parts = [subprocess.Popen(c, start_new_session=True) for c in ({SAVES!r}, {DEAF!r})]\n"
        "def stop(*_):\n"
        "    parts[0].terminate(); parts[0].wait(); print('brought down'); sys.exit(130)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        f"open({str(note)!r}, 'w').write(' '.join(str(part.pid) for part in parts))\n"
        "time.sleep(600)"
    )
    job = jobs.start([sys.executable, "-c", source], kind="train", name="a")
    until(lambda: jobs.get("a").log_tail().count("begun") == 2 and note.exists())
    heeds, ignores = (ProcessId.of(int(pid)) for pid in note.read_text().split())
    os.kill(job.keeper.pid, signal.SIGKILL)
    until(lambda: not job.keeper.is_alive())
    jobs.stop("a")
    until(lambda: not job.process.is_alive())
    assert "saved" in jobs.get("a").log_tail() and "brought down" in jobs.get("a").log_tail()
    assert not heeds.is_alive() and ignores.is_alive() and jobs.get("a").stopping
    jobs.stop("a", grace=0)
    until(lambda: not ignores.is_alive())
    assert jobs.get("a").state == "lost"


@pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux only")
def test_orphans_of_a_job_that_goes_on_do_not_stay_as_zombies(jobs):
    source = (
        "import subprocess, sys, time\n"
        "for _ in range(3):\n"
        "    subprocess.run([sys.executable, '-c', 'import subprocess; subprocess.Popen([\"sleep\", \"0.2\"])'])\n"
        "print('begun', flush=True)\n"
        "time.sleep(600)"
    )
    job = jobs.start([sys.executable, "-c", source], kind="train", name="a")
    begun(jobs, "a")
    children = psutil.Process(job.keeper.pid).children
    until(lambda: [child.pid for child in children()] == [job.process.pid])


def test_a_job_killed_with_its_keeper_is_lost(jobs):
    job = jobs.start(SLEEP, kind="train", name="a")
    for number in (job.keeper.pid, job.process.pid):
        os.kill(number, signal.SIGKILL)
    job = over(jobs, "a")
    assert (job.state, job.exit_code) == ("lost", None)


def test_a_pid_that_now_belongs_to_another_process_is_never_signalled(jobs):
    jobs.start([sys.executable, "-c", ""], kind="train", name="a")
    folder = over(jobs, "a").folder
    (folder / "exit.json").unlink()
    for name in ("process.json", "keeper.json"):
        record = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**record, "pid": os.getpid()}))
    assert jobs.get("a").state == "lost"
    with pytest.raises(UserError, match="does not run"):
        jobs.stop("a")
    jobs.get("a").process.signal_group(signal.SIGKILL)  # would end this test's whole group


def test_a_zombie_counts_as_gone():
    child = subprocess.Popen([sys.executable, "-c", ""])
    me = ProcessId.of(child.pid)
    until(lambda: ProcessId.of(child.pid) is None)
    assert child.returncode is None and (me is None or not me.is_alive())
    child.wait()


def test_of_two_workbenches_only_one_starts_a_job(jobs, tmp_path):
    source = (
        "import sys\n"
        "from dflash.errors import UserError\n"
        "from workbench.jobs import Jobs\n"
        "try:\n"
        "    command = [sys.executable, '-c', 'print(1); import time; time.sleep(600)']\n"
        "    Jobs(sys.argv[1]).start(command, kind='train', name='a')\n"
        "    print('started')\n"
        "except UserError as error:\n"
        "    print(error)"
    )
    answers = [workbench.communicate()[0] for workbench in [python(source, jobs.root) for _ in range(3)]]
    assert sorted("started" in answer for answer in answers) == [False, False, True]
    assert sum("running already" in answer for answer in answers) == 2
    until(lambda: jobs.get("a").log_tail() == "1")


def test_queued_jobs_run_one_after_another_without_any_workbench(jobs, tmp_path):
    note = tmp_path / "order"
    write = (
        "import sys, time; f = open(sys.argv[1], 'a'); print(sys.argv[2], 'in', file=f, flush=True); "
        "time.sleep(0.3); print(sys.argv[2], 'out', file=f)"
    )
    source = (
        "import sys\n"
        "from workbench.jobs import Jobs\n"
        "for name in 'cab':\n"
        f"    command = [sys.executable, '-c', {write!r}, sys.argv[2], name]\n"
        "    Jobs(sys.argv[1]).enqueue(command, kind='train', name=name)\n"
    )
    python(source, jobs.root, note).wait()
    until(lambda: note.exists() and note.read_text().count("out") == 3)
    assert note.read_text().split() == "c in c out a in a out b in b out".split()


def test_a_queued_job_waits_for_one_that_was_started_and_can_be_aborted(jobs):
    jobs.start(SAVES, kind="train", name="first")
    begun(jobs, "first")
    for name in ("second", "third"):
        assert jobs.enqueue(SLEEP, kind="train", name=name).state == "queued"
    assert [job.name for job in jobs.list()] == ["second", "third", "first"]
    with pytest.raises(UserError, match="abort it instead"):
        jobs.stop("second")
    with pytest.raises(UserError, match="is queued already"):
        jobs.start(SLEEP, kind="train", name="second")
    jobs.abort("second")
    jobs.stop("first")
    until(lambda: jobs.get("third").state == "running")
    with pytest.raises(UserError, match="no job 'second'"):
        jobs.get("second")
    with pytest.raises(UserError, match="not waiting any more"):
        jobs.abort("third")


def test_a_queue_whose_keeper_was_killed_goes_on_when_it_is_looked_at(jobs):
    job = jobs.start(SLEEP, kind="train", name="first")
    jobs.enqueue(SLEEP, kind="train", name="second")
    for number in (job.keeper.pid, job.process.pid):
        os.kill(number, signal.SIGKILL)
    until(lambda: jobs.get("first").state == "lost")
    assert jobs.get("second").state == "queued"
    jobs.advance()
    assert jobs.get("second").state == "running"


def test_settings_are_frozen_when_a_job_is_queued(jobs, tmp_path):
    settings = tmp_path / "settings.yaml"
    settings.write_text("one")
    jobs.start(SAVES, kind="train", name="first")
    show = [sys.executable, "-c", "import sys; print(open(sys.argv[1]).read())", "{config}"]
    jobs.enqueue(show, kind="train", name="second", config=settings.read_text())
    settings.write_text("two")
    begun(jobs, "first")
    jobs.stop("first")
    job = over(jobs, "second")
    assert job.log_tail() == "one" and job.config_file.read_text() == "one"


def test_a_resumed_job_goes_on_in_the_same_log(jobs):
    again = [sys.executable, "-c", "print('resumed')"]
    jobs.start(SAVES, kind="train", name="a", resume_command=again)
    begun(jobs, "a")
    with pytest.raises(UserError, match="still running"):
        jobs.resume("a")
    jobs.stop("a")
    over(jobs, "a")
    jobs.resume("a")
    job = over(jobs, "a")
    assert (job.state, job.log_tail().splitlines()) == ("done", ["begun", "saved", "resumed"])


def test_a_job_can_wait_to_be_resumed_and_is_over_as_before_when_it_is_taken_out_again(jobs):
    again = [sys.executable, "-c", "print('resumed')"]
    jobs.start(SAVES, kind="train", name="a", resume_command=again)
    begun(jobs, "a")
    jobs.stop("a")
    before = over(jobs, "a")
    jobs.start(SAVES, kind="train", name="other")
    begun(jobs, "other")
    waits = jobs.resume("a", queued=True)
    assert (waits.state, waits.started, waits.exit_code, waits.stop_requested) == ("queued", None, None, None)
    jobs.abort("a")
    after = jobs.get("a")
    assert (after.state, after.exit_code, after.ended) == ("stopped", 130, before.ended)
    assert after.log_tail() == "begun\nsaved"
    jobs.resume("a", queued=True)
    jobs.stop("other")
    until(lambda: jobs.get("a").state == "done")
    assert jobs.get("a").log_tail().splitlines() == ["begun", "saved", "resumed"]


def test_a_job_is_resumed_at_once_where_nothing_else_runs(jobs):
    jobs.start([sys.executable, "-c", "raise SystemExit(1)"], kind="train", name="a", resume_command=SLEEP)
    assert over(jobs, "a").state == "failed"
    assert jobs.resume("a", queued=True).state == "running"


@pytest.mark.parametrize(
    ("kind", "code", "writes", "state"),
    [
        ("evaluate", 1, True, "done"),  # an output was not identical
        ("evaluate", 1, False, "failed"),  # it crashed
        ("evaluate", 2, True, "failed"),
        ("benchmark", 1, True, "failed"),
        ("train", 1, True, "failed"),
    ],
)
def test_what_an_exit_code_means_hangs_on_the_kind_of_job(jobs, tmp_path, kind, code, writes, state):
    out = tmp_path / "out.json"
    source = f"import sys; {writes} and open(sys.argv[2], 'w'); sys.exit({code})"
    jobs.start([sys.executable, "-c", source, "--json", str(out)], kind=kind, name="a")
    job = over(jobs, "a")
    assert job.state == state and job.result_file == out
    assert ("identical" in job.likely_cause) == (state == "done")


def test_a_job_that_is_over_gives_its_name_back(jobs):
    jobs.start([sys.executable, "-c", "print('old'); raise SystemExit(1)"], kind="train", name="a")
    assert over(jobs, "a").state == "failed"
    with pytest.raises(UserError, match="cannot be resumed"):
        jobs.resume("a")
    jobs.start([sys.executable, "-c", "print('new')"], kind="train", name="a")
    job = over(jobs, "a")
    assert (job.state, job.log_tail()) == ("done", "new")


def test_a_command_that_cannot_run_is_told_at_once_and_does_not_hold_up_the_queue(jobs):
    with pytest.raises(UserError, match="'/no/such/program': No such file"):
        jobs.start(["/no/such/program"], kind="train", name="a")
    assert jobs.get("a").state == "failed"
    jobs.start(SAVES, kind="train", name="first")
    jobs.enqueue(["/no/such/program"], kind="train", name="second")
    jobs.enqueue([sys.executable, "-c", "print('third')"], kind="train", name="third")
    begun(jobs, "first")
    jobs.stop("first")
    assert over(jobs, "third").log_tail() == "third"
    assert "No such file" in jobs.get("second").likely_cause


@pytest.mark.parametrize("name", ["", ".hidden", "../up", "a/b", "a b", "x" * 101, "a\n"])
def test_names_that_are_no_plain_names_are_refused(jobs, name):
    with pytest.raises(UserError, match="no plain name"):
        jobs.start(SLEEP, kind="train", name=name)
    with pytest.raises(UserError, match="no plain name"):
        jobs.get(name)


def test_a_damaged_record_is_left_out_of_the_list(jobs):
    jobs.start([sys.executable, "-c", ""], kind="train", name="a")
    over(jobs, "a")
    (jobs.folder / "torn").mkdir()
    (jobs.folder / "torn" / "job.json").write_text('{"name": "to')
    (jobs.folder / "foreign").mkdir()
    (jobs.folder / "foreign" / "job.json").write_text("[1]")
    assert [job.name for job in jobs.list()] == ["a"]
    with pytest.raises(UserError, match="no job 'torn'"):
        jobs.get("torn")


def test_the_end_of_a_log_is_read_whatever_it_holds(tmp_path):
    log = tmp_path / "output.log"
    log.write_bytes(b"first\n" + b"x" * 10_000_000 + b"\n" + b"10 %\r20 %\r30 %\n\xff\xfe\nlast\n")
    lines = tail(log, 10).split("\n")
    assert lines[-3:] == ["30 %", "\ufffd\ufffd", "last"]
    assert len(lines[0]) < 3_000 and lines[0].endswith("more characters)")
    assert tail(tmp_path / "none", 10) == ""


def test_the_start_of_a_job_is_never_seen_as_its_loss(jobs):
    """Readers hold no lock: at any moment between queued and done they see a job that waits, runs or is over."""
    jobs.start(SAVES, kind="train", name="first")
    jobs.enqueue([sys.executable, "-c", ""], kind="train", name="second")
    begun(jobs, "first")
    jobs.stop("first")
    seen = []
    until(lambda: seen.append(jobs.get("second").state) or seen[-1] == "done")
    assert set(seen) <= {"queued", "running", "done"}


def test_a_workbench_on_a_folder_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Jobs(tmp_path / "file").start(SLEEP, kind="train", name="a")
    assert Jobs(Path(tmp_path / "file")).list() == []
