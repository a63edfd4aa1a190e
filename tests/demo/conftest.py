"""A run to show, and its page served as the program serves it."""

import contextlib
import http.client
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from ffcv_r50 import models, saved
from ffcv_r50.config import settings
from ffcv_r50.data.beton import sidecar_path
from ffcv_r50.demo import examples
from ffcv_r50.demo.__main__ import LOOPBACK, listen
from ffcv_r50.demo.answers import Answers
from ffcv_r50.demo.server import Demo
from ffcv_r50.saved import Saved
from tests.conftest import Dataset

CPU = torch.device("cpu")
NAMES = ["<script>alert('x')</script>", "b&amp;{{ 7 * 7 }}\x1b[31m\ud800", "c " * 60]
"""Of classes, which anybody may have made."""
SHOWN = ["<script>alert('x')</script>", "b&amp;{{ 7 * 7 }}\\x1b[31m", "c"]
"""What of them is to be read, at their beginning."""


@pytest.fixture(scope="session")
def run(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a finished run leaves it, with a report."""
    base = tmp_path_factory.mktemp("demo")
    val = base / "val.beton"
    shutil.copy(dataset.val, val)
    sidecar = json.loads(sidecar_path(dataset.val).read_text())
    sidecar_path(val).write_text(json.dumps({**sidecar, "classes": NAMES}))
    folder = base / "run <i>1"
    folder.mkdir()
    moved = dataset._replace(val=val)
    config = settings.load(moved.arguments(folder, "--validation.resolution=96"))
    (folder / "config.yaml").write_text(config.to_yaml())
    torch.manual_seed(0)
    network = models.build(num_classes=3, **config.model.network)
    network(torch.randn(8, 3, 96, 96))  # statistics of batch-norm that are none of a new network
    torch.save(network.state_dict(), folder / "weights.pt")
    (folder / "log.jsonl").write_text('{"epoch": 0, "top_1": 34.5}\n')
    (folder / "report.html").write_text("<title>The report</title><script>window.ran = 1</script>")
    return folder


@pytest.fixture(scope="session")
def found(run: Path) -> Saved:
    return saved.find(run, None, {}, CPU)


@pytest.fixture(scope="session")
def answers(found: Saved) -> Answers:
    return Answers(found, CPU)


def photos(dataset: Dataset) -> list[Path]:
    return sorted((dataset.val.parent / "val").rglob("*.jpg"))


class Site(NamedTuple):
    """A page that is served."""

    port: int
    demo: Demo

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Status, headers and body of an answer."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, 60)) as client:
            client.request(method, path, body, headers)
            answer = client.getresponse()
            return answer.status, answer.headers, answer.read()

    def classify(self, content: bytes) -> tuple[int, dict[str, Any]]:
        """Status and answer."""
        status, _, body = self.ask("POST", "/classify", content)
        return status, json.loads(body)


@contextlib.contextmanager
def serving(demo: Demo) -> Iterator[Site]:
    """A page, served by a thread."""
    with contextlib.closing(listen("127.0.0.1", 0)) as listening:
        listening.listen()  # who comes before the thread is ready waits
        server = demo.server()
        thread = threading.Thread(target=server.run, args=([listening],))
        port = listening.getsockname()[1]
        thread.start()
        try:
            yield Site(port, demo)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


@pytest.fixture
def site(answers: Answers, run: Path) -> Iterator[Site]:
    """The run's page, of which this test alone asks."""
    with serving(Demo(answers, examples.of(answers.found), run, LOOPBACK)) as served:
        yield served
