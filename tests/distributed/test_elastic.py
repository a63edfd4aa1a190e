"""torchrun --nnodes=1:2: a machine that joins, or is lost, restarts the run in the new size."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ffcv_r50.errors import FINISHED
from tests import ranks
from tests.conftest import REPOSITORY, Dataset

# The first machine trains alone until the second one's coming stops it before step 5; together
# they get to step 9, before which the second one vanishes, its torchrun too.
RANK = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {repository!r})
from tests import ranks

def wait_to_be_stopped():
    Path({alone!r}).touch()
    signal.pause()

def vanish():
    os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)

if os.environ["MACHINE"] == "second":
    ranks.before_step(vanish, 9)
elif os.environ["WORLD_SIZE"] == "1" and not Path({alone!r}).exists():
    ranks.before_step(wait_to_be_stopped, 5)
ranks.main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_machine_joins_and_another_is_lost(dataset: Dataset, tmp_path: Path) -> None:
    undisturbed, elastic, alone = (tmp_path / name for name in ("undisturbed", "elastic", "alone"))
    arguments = ranks.arguments(dataset, undisturbed, *ranks.WITHOUT_TIMM)
    ended = ranks.run(arguments, undisturbed, ranks=1)
    assert ended.codes == [FINISHED], ended.outputs

    script = tmp_path / "rank.py"
    script.write_text(RANK.format(repository=str(REPOSITORY), alone=str(alone)))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
    quick = "last_call_timeout=1,keep_alive_interval=1"
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2", "--nproc-per-node=1"]
    command += ["--max-restarts=3", "--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}"]
    command += ["--rdzv-id=elastic", f"--rdzv-conf={quick}", "--local-addr=127.0.0.1", str(script)]
    more = (*ranks.WITHOUT_TIMM, "--dist.timeout_seconds=20")
    command += ranks.arguments(dataset, elastic, *more)

    def join(machine: str) -> "subprocess.Popen[bytes]":
        environment = {"MACHINE": machine, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        with open(tmp_path / f"{machine}.log", "wb") as output:
            return subprocess.Popen(
                command, env=os.environ | environment, stdout=output, stderr=subprocess.STDOUT
            )

    first = join("first")
    second = None
    try:
        deadline = time.monotonic() + 100
        while not alone.exists():
            assert first.poll() is None, (tmp_path / "first.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)  # a file has no event to wait for
        second = join("second")
        assert second.wait(100) == -signal.SIGKILL, (tmp_path / "second.log").read_text()
        assert first.wait(100) == 0, (tmp_path / "first.log").read_text()
    finally:
        for machine in (first, second):
            if machine:
                machine.kill()

    starts = json.loads((elastic / "environment.json").read_text())
    assert [start["world_size"] for start in starts] == [1, 2, 1]
    ranks.assert_same_run(undisturbed, elastic)
