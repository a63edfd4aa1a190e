"""A training that is kept running: faults, stops, and a cloud's notice, told by a fake metadata service."""

import contextlib
import http.client
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ffcv_r50.errors import UserError
from ffcv_r50.run import notices
from ffcv_r50.tools.keep_running import Asked, Keeper, keep_running
from tests import ranks
from tests.conftest import REPOSITORY, Dataset

# What a training does to its folder, without the training: START counts its starts.
STAND_IN = """
import json, os, signal, sys, time
os.makedirs("run/checkpoints", exist_ok=True)
def status(**said): open("run/status.json", "w").write(json.dumps({"time": os.urandom(4).hex(), **said}))
def save(): open("run/new", "w").close(); os.replace("run/new", "run/checkpoints/last.pt")
START = len(open("starts").readlines()) if os.path.exists("starts") else 0
open("starts", "a").write("x\\n")
status(state="running")
"""
WAIT_FOR_STOP = """
def stop(number, frame): save(); status(state="stopped", exit_code=75); sys.exit(75)
signal.signal(signal.SIGTERM, stop)
print("waits", flush=True)
signal.pause()
"""


@contextlib.contextmanager
def kept(folder: Path, command: list[str], *options: str) -> Iterator["subprocess.Popen[str]"]:
    program = [sys.executable, "-m", "ffcv_r50.tools.keep_running", "run", *options, "--"]
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        # A proxy must not be asked for the metadata service.
        "http_proxy": "http://127.0.0.1:9",
    }
    process = subprocess.Popen(
        program + command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env=environment,
        start_new_session=True,
    )
    deadline = threading.Timer(200, process.kill)
    deadline.start()
    with process:
        try:
            yield process
        finally:
            deadline.cancel()
            process.kill()


def stand_in(script: str) -> list[str]:
    return [sys.executable, "-c", STAND_IN + script]


def until(process: "subprocess.Popen[str]", words: str) -> None:
    """Read what it prints until it prints ``words``."""
    assert process.stdout
    while words not in (line := process.stdout.readline()):
        assert line, "it ended"


def run(folder: Path, script: str, *options: str) -> tuple[int, str]:
    with kept(folder, stand_in(script), *options) as process:
        output = process.communicate()[0]
    return process.returncode, output


def starts(folder: Path) -> int:
    return len((folder / "starts").read_text().splitlines())


@pytest.mark.parametrize(
    ("script", "code", "count", "said"),
    [
        ("status(state='finished')", 0, 1, "finished after "),
        ("sys.exit(2)", 2, 1, "with exit code 2"),
        (
            "status(state='failed', exit_code=1, reason='KeyError: bug'); sys.exit(1)",
            1,
            1,
            "KeyError: bug; trying again would not help",
        ),
        # torchrun hides the code
        ("status(state='failed', exit_code=2, reason='no file'); sys.exit(1)", 2, 1, "no file"),
        ("status(state='stopped'); sys.exit(75)", 75, 1, "the same command continues"),
        ("os.kill(os.getpid(), 9)", 1, 3, "3 faults without progress: given up"),
    ],
)
def test_what_is_tried_again(tmp_path: Path, script: str, code: int, count: int, said: str) -> None:
    # A status of "running" is one's own only where the run came so far.
    script = script if "exit(2)" not in script else "os.remove('run/status.json'); " + script
    ended, output = run(tmp_path, script, "--wait=0")
    assert (ended, starts(tmp_path)) == (code, count), output
    assert said in output
    assert (tmp_path / "run.starts.log").read_text() == output


def test_progress_between_faults_counts(tmp_path: Path) -> None:
    script = "START in (2, 4) and save()\nSTART < 6 and os.kill(os.getpid(), 9)"
    ended, output = run(tmp_path, script, "--wait=0")
    assert (ended, starts(tmp_path)) == (0, 7), output


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_reaches_the_run_once(tmp_path: Path, asked: signal.Signals) -> None:
    script = """
mask = {1, 2, 10, 15}
signal.pthread_sigmask(signal.SIG_BLOCK, mask)
print("waits", flush=True)
print("got", int(signal.sigwait(mask)), os.getpgrp() == os.getpid(), flush=True)
save(); status(state="stopped"); sys.exit(75)
"""
    with kept(tmp_path, stand_in(script)) as process:
        until(process, "waits\n")
        os.killpg(process.pid, asked)  # as a terminal does, to all of its group
        output = process.communicate()[0]
    assert process.wait() == 75
    assert (
        f"got {int(asked)} True\n" in output
    )  # in a group of its own, which a terminal does not signal
    assert starts(tmp_path) == 1


def test_a_stop_while_it_waits_to_start_again(tmp_path: Path) -> None:
    with kept(tmp_path, stand_in("os.kill(os.getpid(), 9)"), "--wait=100") as process:
        until(process, "started again in 100 s")
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 75


# ----------------------------------------------------------------------------- the cloud's notice


class Metadata(ThreadingHTTPServer):
    """What AWS's, GCP's and Azure's services say before an interruption, and once there is a notice."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.notice = threading.Event()
        self.asked = threading.Event()
        self.address = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Metadata

    def log_message(self, *_: object) -> None:
        pass

    def reply(self, code: int, body: str) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def do_PUT(self) -> None:
        right = self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self.reply(200 if self.path == "/latest/api/token" and right else 400, "token")

    def do_GET(self) -> None:
        notice = self.server.notice.is_set()
        if self.path == "/latest/meta-data/spot/instance-action":
            if self.headers["X-aws-ec2-metadata-token"] != "token":
                self.reply(401, "")
            elif notice:
                self.reply(200, '{"action": "terminate", "time": "2026-11-21T08:22:00Z"}')
            else:
                self.reply(404, "")
        elif self.path == "/computeMetadata/v1/instance/preempted":
            right = self.headers["Metadata-Flavor"] == "Google"
            self.reply(200 if right else 403, "TRUE" if notice else "FALSE")
        elif self.path == "/metadata/scheduledevents?api-version=2020-07-01":
            events = [{"EventType": "Freeze"}] + [{"EventType": "Preempt"}] * notice
            right = self.headers["Metadata"] == "true"
            self.reply(200 if right else 400, json.dumps({"Events": events}))
        else:
            self.reply(404, "")
        self.server.asked.set()


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    with Metadata() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("provider", "words"),
    [("aws", "terminate"), ("gcp", "preempted is TRUE"), ("azure", "Preempt")],
)
def test_a_notice_stops_the_run(
    tmp_path: Path, metadata: Metadata, provider: str, words: str
) -> None:
    options = (f"--provider={provider}", f"--address={metadata.address}")
    with kept(tmp_path, stand_in(WAIT_FOR_STOP), *options) as process:
        until(process, "waits\n")
        assert metadata.asked.wait(30)
        assert process.poll() is None
        metadata.notice.set()
        output = process.communicate()[0]
    assert process.wait() == 75, output
    assert re.search(f"interruption notice: .*{words}", output)
    assert "does not answer" not in output
    assert (tmp_path / "run" / "checkpoints" / "last.pt").exists()


def test_a_service_that_does_not_answer_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "SECONDS", 0.01)
    asked: list[str] = []
    said: list[str] = []
    over = threading.Event()

    def ask(provider: str, address: str) -> str | None:
        asked.append(address)
        if len(asked) == 2:
            raise http.client.BadStatusLine("SSH-2.0")
        if len(asked) < 4:
            raise ConnectionRefusedError("refused")
        return "it goes"

    monkeypatch.setattr(notices, "ask", ask)
    with notices.Watch("gcp", "http://host", lambda _: over.set(), said.append):
        assert over.wait(30)
    assert len(said) == 1
    assert "http://host does not answer as gcp's metadata service (refused)" in said[0]


@pytest.mark.parametrize("provider", ["aws", "gcp", "azure"])
def test_another_service_at_the_address_is_no_notice(provider: notices.Provider) -> None:
    class Page(Handler):
        def do_GET(self) -> None:
            self.reply(200 if provider == "azure" else 500, "<html>TRUE</html>")

        do_PUT = do_GET

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with pytest.raises(OSError, match=r"no list|Internal"):
            notices.ask(provider, f"http://127.0.0.1:{server.server_address[1]}")
        server.shutdown()
        thread.join()


TRAINING = """
import signal, sys, threading
from pathlib import Path
sys.path.insert(0, {repository!r})
from tests import ranks

def hold():
    if not Path("held").exists():
        Path("held").touch()
        asked, handle = threading.Event(), signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, lambda *signal: (handle(*signal), asked.set()))
        print("waits", flush=True)
        asked.wait()

ranks.before_step(hold, 6, None)
ranks.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_training_is_stopped_in_time_and_continued(
    tmp_path: Path, metadata: Metadata, dataset: Dataset
) -> None:
    """It waits in the middle of an epoch until the notice is there."""
    command = [sys.executable, "-c", TRAINING.format(repository=str(REPOSITORY))]
    command += ranks.arguments(dataset, tmp_path / "run", *ranks.WITHOUT_TIMM)
    options = ("--provider=aws", f"--address={metadata.address}")
    with kept(tmp_path, command, *options) as process:
        until(process, "waits\n")
        metadata.notice.set()
        output = process.communicate()[0]
    assert process.wait() == 75, output
    assert "the state is saved" in output
    assert re.search(r"stopped as asked after .* s, [\d.]+ s after it was asked; the same", output)
    metadata.notice.clear()
    with kept(tmp_path, command, *options) as process:
        output = process.communicate()[0]
    assert process.returncode == 0, output
    assert "continuing after epoch 1" in output
    alone = ranks.arguments(dataset, tmp_path / "alone", *ranks.WITHOUT_TIMM)
    ended = ranks.run(alone, tmp_path / "output", ranks=1)
    assert ended.codes == [0]
    ranks.assert_same_run(tmp_path / "run", tmp_path / "alone")


# ---------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--", "no-such-program"], "no-such-program cannot be started: No such file"),
        (["run"], "-- COMMAND"),
        (["--wait=1", "--", "true"], "RUN_FOLDER"),
        (["run", "--often", "--", "true"], "--often"),
        (["run", "--address=http://x", "--", "true"], "--provider"),
        (["run", "--provider=ibm", "--", "true"], "ibm"),
    ],
)
def test_bad_words_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {number: signal.getsignal(number) for number in (1, 2, 10, 12, 15)}
    try:
        with pytest.raises(UserError, match=re.escape(said)):
            keep_running(words)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_the_unit_has_the_same_words(
    capsys: pytest.CaptureFixture[str], split: Callable[[str], list[str]]
) -> None:
    command = ["torchrun", "train_imagenet.py", "--schedule.lr={0: 0.5}", 'a"b', "50% $HOME"]
    keep_running(["runs/a", "--provider=aws", "--unit", "--", *command])
    unit = capsys.readouterr().out
    (line,) = re.findall("^ExecStart=(.*)$", unit, re.MULTILINE)
    assert split(line) == [
        *(sys.executable, "-m", "ffcv_r50.tools.keep_running"),
        *("runs/a", "--provider=aws", "--", *command),
    ]


@pytest.fixture
def split() -> Callable[[str], list[str]]:
    """A command line as systemd splits it: shell-like quotes, %% and $$ for themselves."""
    return lambda line: [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(line)]


def test_a_link_in_the_place_of_its_log_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run.starts.log").symlink_to("precious")
    Keeper(tmp_path / "run", ["true"], Asked()).say("start")
    assert (tmp_path / "precious").read_text() == "precious"
