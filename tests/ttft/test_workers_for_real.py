"""Workers as they are: a real Ray, a real model, drivers that are signalled or killed."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from arcft.runs.adaptation.run_folder import LEDGER_FILE
from arcft.ttft.ledger.ledger import Ledger
from arcft.ttft.units import ADAPT_ROUND, BASELINE_ROUND, Event, Finished
from arcft.ttft.workers.ray_actors import nodes_of
from arcft.ttft.workers.resources import Node
from arcft.ttft.workers.run import WorkerError, drain_on_ray
from tests.support.arc import ARC
from tests.support.evaluate_command import answers, evaluated, evaluation_tasks, run_json, trained
from tests.support.scripted_engine import TESTS_PATH, Scripted, assert_all_gone, never, pids, scripted_queue, states

# A driver of its own, for what happens when it is signalled or killed.

DRIVER = """
import signal, sys
from pathlib import Path
from tests.support.scripted_engine import Scripted, scripted_queue, states
from arcft.ttft.workers.run import drain_in_processes, drain_on_ray

if __name__ == "__main__":
    folder, start, kind = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    queue, ledger = scripted_queue(folder, ["a", "b", "c"])
    received = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: received.append(number))
    work = {"processes": drain_in_processes, "ray": drain_on_ray}[kind]
    pause = float(sys.argv[4]) if len(sys.argv) > 4 else 60.0
    work(Scripted(folder, pause=pause, start=start), 2, queue, stopped=lambda: bool(received), on_event=print)
    print("stopped by", *received)
    print(sorted(states(ledger).items()), [note.text for note in ledger.notes()])
"""


def start_driver(folder: Path, start: str, kind: str = "processes", pause: float = 60.0) -> subprocess.Popen[str]:
    """A driver in a process group of its own, once all its workers build their engines, or work."""
    script = folder / "driver.py"
    script.write_text(DRIVER, encoding="utf-8")
    driver = subprocess.Popen(
        [sys.executable, str(script), str(folder), start, kind, str(pause)],
        env=os.environ | {"PYTHONPATH": TESTS_PATH},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: len(pids(folder)) == 2, driver)
    if start == "well":
        for _ in range(2):
            assert driver.stdout.readline().startswith("Started")
    return driver


def wait_for(condition, driver: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "number", "start"),
    [
        ("processes", signal.SIGINT, "well"),
        ("processes", signal.SIGTERM, "slow"),
        ("processes", signal.SIGKILL, "well"),
        ("ray", signal.SIGINT, "slow"),
        ("ray", signal.SIGTERM, "well"),
        ("ray", signal.SIGKILL, "slow"),
    ],
)
def test_no_worker_survives_its_driver(tmp_path: Path, kind: str, number: signal.Signals, start: str) -> None:
    driver = start_driver(tmp_path, start, kind)
    if number == signal.SIGKILL:
        driver.kill()
    else:
        # As a terminal and a batch system do: to all of them.
        os.killpg(driver.pid, number)
    out, err = driver.communicate(timeout=60)
    assert_all_gone(tmp_path)
    if number != signal.SIGKILL:
        assert (driver.returncode, out.splitlines()[-2]) == (0, f"stopped by {int(number)}")
        assert "Traceback" not in err


# Ray.


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A local Ray whose workers find the modules of these tests."""
    ray = pytest.importorskip("ray")
    ray.init(include_dashboard=False, num_cpus=2, runtime_env={"env_vars": {"PYTHONPATH": TESTS_PATH}})
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_killed_actor_gives_its_unit_back_and_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ["a", "kill-2", "b", "raise-1", "fail-1", "fail-9"]
    queue, ledger = scripted_queue(tmp_path, names, predict_before=1)
    seen: list[Event] = []
    drain_on_ray(Scripted(tmp_path, pause=0.1), 2, queue, stopped=never, on_event=seen.append)
    assert states(ledger) == dict.fromkeys(names, "done") | {"fail-9": "failed"}
    assert Counter(event.key for event in seen if isinstance(event, Finished)) == {
        (round, name): 1 for round in (BASELINE_ROUND, ADAPT_ROUND) for name in names if name != "fail-9"
    }
    deaths = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(deaths) == 3
    assert sum("queued again: ActorDiedError: Worker unexpectedly exits" in death for death in deaths) == 2
    assert sum("queued again: ValueError: a bug in the engine" in death for death in deaths) == 1
    assert_all_gone(tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("refused", r"^model\.path=/nowhere: there is no such model$"),
        ("killed", r"^no worker could be started: ActorDiedError: .*; .*use ttft\.workers=local$"),
    ],
)
def test_what_no_actor_can_do_is_one_error(tmp_path: Path, start: str, message: str) -> None:
    queue, _ = scripted_queue(tmp_path, ["a"])
    with pytest.raises(WorkerError, match=message):
        drain_on_ray(Scripted(tmp_path, start=start), 2, queue, stopped=never, on_event=lambda event: None)
    assert_all_gone(tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_the_cluster_says_how_many_actors_there_are(tmp_path: Path) -> None:
    import ray

    assert nodes_of(ray) == [Node(cores=2, gpus=0)]
    queue, _ = scripted_queue(tmp_path, ["a", "b"])
    drain_on_ray(Scripted(tmp_path), None, queue, stopped=never, on_event=lambda event: None)
    assert len(pids(tmp_path)) == 1
    assert ray.is_initialized()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_a_cluster_that_is_lost_is_started_again(tmp_path: Path, name: str) -> None:
    """Ray's own processes are killed while two units are worked on."""
    pytest.importorskip("ray")
    driver = start_driver(tmp_path, "well", "ray", pause=12.0)
    [process] = [each for each in psutil.Process(driver.pid).children(recursive=True) if name in each.name()]
    process.kill()
    out, err = driver.communicate(timeout=250)
    assert driver.returncode == 0, err
    assert "[('a', 'done'), ('b', 'done'), ('c', 'done')]" in out
    assert "the Ray cluster was lost, its units are queued again: " in out
    assert_all_gone(tmp_path)


def test_without_ray_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    queue, _ = scripted_queue(tmp_path, ["a"])
    with pytest.raises(WorkerError, match=r"^ttft\.workers=ray: Ray is not installed; pip install 'arcft\[ray\]'"):
        drain_on_ray(Scripted(tmp_path), 2, queue, stopped=never, on_event=lambda event: None)


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.support.scripted_engine import Scripted, scripted_queue\n"
        "from arcft.ttft.workers.run import WorkerError, drain_on_ray\n"
        "folder = Path(sys.argv[1])\n"
        "try: drain_on_ray(Scripted(folder), 1, scripted_queue(folder, ['a'])[0], stopped=bool, on_event=print)\n"
        "except WorkerError as error: print(error)\n"
    )
    environment = os.environ | {"PYTHONPATH": TESTS_PATH, "RAY_ADDRESS": "nowhere"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=120
    )
    expected = "ttft.workers=ray: no cluster can be joined or started: Invalid address format: nowhere"
    assert done.stdout.strip() == expected, done


# The real engine.


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def adapted_here(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapt(run, tmp_path_factory.mktemp("here") / "evaluation")


def adapt(run: Path, folder: Path, *overrides: str) -> Path:
    (run / "evaluations.jsonl").unlink(missing_ok=True)
    settings = ["ttft=per_task", "ttft.max_steps=40", "ttft.slots=1"]
    return evaluated(folder, f"checkpoint={run}", *evaluation_tasks(), *settings, *overrides)


def workers_of_this_process() -> list[int]:
    """Processes that hold a WorkerEngine and descend from this one, however far."""
    parents, names = {}, {}
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            number = int(status.parent.name)
            names[number] = (status.parent / "cmdline").read_bytes()
            parents[number] = int(status.read_text().partition("PPid:")[2].split()[0])

    def is_mine(number: int) -> bool:
        return number == os.getpid() or (number in parents and is_mine(parents[number]))

    return [
        number
        for number, name in names.items()
        if (b"spawn_main" in name or b"ray::WorkerEngine" in name) and is_mine(number)
    ]


def kill_all_at_work(ledger: Path, killed: list[int]) -> None:
    """Wait until a unit is done and another one is under way, then kill every worker."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        with contextlib.suppress(sqlite3.Error), sqlite3.connect(f"file:{ledger}?mode=ro", uri=True) as connection:
            counts = dict(connection.execute("SELECT state, count(*) FROM units WHERE round = 1 GROUP BY state"))
            if counts.get("done") and counts.get("adapting"):
                for number in workers_of_this_process():
                    os.kill(number, signal.SIGKILL)
                    killed.append(number)
                return
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["processes", "ray"])
def test_workers_predict_what_one_process_does_also_when_they_are_killed(
    adapted_here: Path, run: Path, tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    if kind == "ray":
        request.getfixturevalue("local_ray")
    folder, killed = tmp_path / "evaluation", []
    killer = threading.Thread(target=kill_all_at_work, args=(folder / LEDGER_FILE, killed))
    killer.start()
    adapt(run, folder, f"ttft.workers={kind}", "ttft.num_workers=2")
    killer.join()
    assert killed
    assert answers(folder) == answers(adapted_here)
    assert run_json(folder)["metrics"] == run_json(adapted_here)["metrics"]
    with Ledger.open(folder / LEDGER_FILE, ARC) as ledger:
        assert {record.state for record in ledger.records()} == {"done"}
        assert all(record.worker.startswith(kind.removesuffix("es")) for record in ledger.records())
        # More starts than units: those that the killed workers had in hand.
        assert sum(record.starts for record in ledger.records()) > len(ledger.records())
    deadline = time.monotonic() + 5
    while workers_of_this_process() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert workers_of_this_process() == []
