"""The page over HTTP: answers against predictions of the same files, hostile uploads, limits."""

import base64
import io
import json
import re
import socket
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
import torch
from PIL import Image
from starlette.requests import Request

from ffcv_r50 import models, predict
from ffcv_r50.data.beton import Beton
from ffcv_r50.data.loader import EvalLoader
from ffcv_r50.demo import server, uploads
from ffcv_r50.demo.answers import Answers
from ffcv_r50.demo.limits import Rate
from ffcv_r50.demo.server import Demo
from ffcv_r50.demo.uploads import Refused
from ffcv_r50.saved import Saved
from tests.conftest import Dataset
from tests.demo.conftest import CPU, NAMES, SHOWN, Site, photos, serving


def picture(address: str) -> Image.Image:
    kind, _, content = address.partition(",")
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


def jpeg(size: tuple[int, int] = (60, 50), **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 30, 90)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def test_it_says_what_predict_says(site: Site, found: Saved, dataset: Dataset) -> None:
    path = photos(dataset)[4]
    status, answer = site.classify(path.read_bytes())
    assert status == 200
    [expected] = predict.predictions(found, [str(path)], 1, CPU)
    assert isinstance(expected, predict.Prediction)
    for top, number, share in zip(answer["top"], *expected[1:], strict=True):
        assert top["name"].startswith(SHOWN[number])
        assert top["probability"] == pytest.approx(share, rel=1e-6)
    seen = picture(answer["image"])
    crop = predict.crop_of(np.asarray(Image.open(path).convert("RGB")), found)
    np.testing.assert_array_equal(np.asarray(seen), crop)
    drawn = [top["map"] for top in answer["top"]]
    assert any(drawn)
    assert {picture(one).size for one in drawn if one} == {(96, 96)}
    assert min(answer["read_ms"], answer["network_ms"]) > 0


def test_the_examples_are_what_the_evaluation_sees(site: Site, found: Saved) -> None:
    val = Beton(found.config.data.val_dataset)
    loader = EvalLoader(val, batch_size=29, resolution=96, crop_ratio=0.875)
    with loader.epoch() as batches:
        [crops] = [batch.images.clone() for batch in batches]
    page = site.ask("GET", "/")[2].decode()
    assert page.count("data-example=") == 12
    for number in (0, 5, 11):
        index = round(number * 28 / 11)
        status, _, body = site.ask("POST", f"/examples/{number}")
        assert status == 200
        seen = np.asarray(picture(json.loads(body)["image"]))
        np.testing.assert_array_equal(seen, crops[index].numpy())
    assert site.ask("POST", "/examples/12")[0] == 404


def test_names_are_escaped(site: Site) -> None:
    status, headers, body = site.ask("GET", "/")
    page = body.decode()
    assert status == 200
    assert "<script>alert" not in page
    assert "<i>1" not in page
    assert "&lt;script&gt;alert" in page
    assert "{{ 7 * 7 }}" in page
    assert "top-1 34.50&nbsp;%" in page
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_nothing_in_the_page_is_elsewhere(site: Site) -> None:
    addresses = re.compile(rb"(?:https?:)?//\w|@import|url\(")
    for path in ("/", "/page.css", "/page.js"):
        status, headers, body = site.ask("GET", path)
        assert status == 200
        assert not addresses.search(re.sub(rb'"data:[^"]*"', b"", body)), path
        policy = headers["Content-Security-Policy"]
        assert set(re.findall(r"[a-z]+-src [^;]*", policy)) == {
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src data:",
            "connect-src 'self'",
        }


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is so large, and ends."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    checked = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + checked + struct.pack(">I", 1000) + b"IDAT"


def test_bad_uploads_get_a_sentence(site: Site, dataset: Dataset) -> None:
    good = photos(dataset)[0].read_bytes()
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    bad = {
        b"no image": (415, "This is not a JPEG, PNG, WebP, GIF or BMP image."),
        b"": (415, "The file is empty."),
        postscript: (415, "This is not a JPEG"),
        good[:300]: (422, "The image is damaged"),
        png_header(40_000, 40_000): (413, "The image is too large. Make it smaller"),
        png_header(9_000, 9_000): (413, "The image is too large (9,000 x 9,000 pixels)."),
        png_header(8_000, 8_000): (422, "The image is damaged"),
        jpeg((1000, 1000)) + b"\xff\xda" * 2147: (422, "This JPEG has 2,148 scans"),
        b"GIF89a" + b"\xff" * 50: (415, "This is not"),
        bytes(uploads.MOST_BYTES + 1): (413, "The file has 32 MB, at most 32 MB are taken."),
    }
    for content, (expected, sentence) in bad.items():
        status, answer = site.classify(content)
        assert status == expected, (content[:60], answer)
        assert answer["error"].startswith(sentence)
        assert "\n" not in answer["error"]
        assert answer["error"].endswith(".")
    for content in (
        good,
        jpeg((1000, 1000)) + b"\xff\xda" * 2146,
        jpeg((30_000, 1)),
        jpeg((1, 30_000)),
        jpeg(progressive=True),
    ):
        status, answer = site.classify(content)
        assert status == 200, answer


def test_photos_stand_upright(site: Site, found: Saved) -> None:
    """Also of a network whose dataset kept them as cameras store them."""
    assert found.upright is False
    image = Image.fromarray(np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3))
    answers = []
    for orientation, stored in ((1, image.rotate(-90, expand=True)), (6, image)):
        exif, buffer = Image.Exif(), io.BytesIO()
        exif[0x0112] = orientation
        stored.save(buffer, "PNG", exif=exif)
        answers.append(site.classify(buffer.getvalue())[1]["image"])
    assert answers[0] == answers[1]


def test_a_fault_is_a_sentence_too(
    answers: Answers,
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("inside")

    photo = photos(dataset)[0].read_bytes()
    with serving(Demo(answers, [], None)) as site:
        monkeypatch.setattr(predict, "crop_of", fail)
        status, answer = site.classify(photo)
        assert status == 500
        assert answer == {"error": "The server failed at this image. Its terminal says more."}
        monkeypatch.undo()
        assert site.classify(photo)[0] == 200
    assert "RuntimeError: inside" in capsys.readouterr().err


def test_ten_at_once(site: Site, found: Saved, dataset: Dataset) -> None:
    names = photos(dataset)[:10]
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda path: site.classify(path.read_bytes()), names))
    expected = predict.predictions(found, map(str, names), 10, CPU)
    for (status, answer), one in zip(answers, expected, strict=True):
        assert status == 200
        assert isinstance(one, predict.Prediction)
        shares = [top["probability"] for top in answer["top"]]
        assert shares == pytest.approx(one.probabilities, rel=1e-4)


def test_who_finds_no_place_is_told(site: Site) -> None:
    request = Request({"type": "http", "client": ("10.0.0.1", 1)})

    async def crowd() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(server.PLACES):
                await group.start(stay)
            with pytest.raises(Refused, match="busy") as refused:
                async with site.demo._place(request):
                    pass
            assert (refused.value.status, refused.value.seconds) == (503, 10)
            group.cancel_scope.cancel()
        async with site.demo._place(request):
            pass  # those who left made room, whatever they left by

    async def stay(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        async with site.demo._place(request):
            task_status.started()
            await anyio.sleep_forever()

    anyio.run(crowd)


def test_who_asks_too_often_is_told(site: Site) -> None:
    site.demo._rate = Rate(2, 3600, lambda: 0.0)
    assert [site.ask("POST", "/examples/0")[0] for _ in range(2)] == [200, 200]
    status, headers, body = site.ask("POST", "/classify", b"x")
    assert (status, headers["Retry-After"]) == (429, "3600")
    assert json.loads(body) == {"error": "Too many photos at once. Try again in 3600 s."}
    assert site.ask("GET", "/")[0] == 200


def test_an_upload_ends(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "UPLOAD_SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", site.port), 60) as slow:
        slow.sendall(b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc")
        assert slow.recv(1000).startswith(b"HTTP/1.1 408 ")
    assert site.demo._taken == 0


def test_who_leaves_makes_room(
    site: Site, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = threading.Event()
    body = server._body

    async def watched(request: Request) -> bytes:
        try:
            return await body(request)
        finally:
            left.set()

    monkeypatch.setattr(server, "_body", watched)
    with socket.create_connection(("127.0.0.1", site.port), 60) as one:
        one.sendall(b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc")
    assert left.wait(60)
    assert site.classify(photos(dataset)[0].read_bytes())[0] == 200
    assert site.demo._taken == 0


def test_another_name_is_refused(site: Site) -> None:
    """Which a page from elsewhere may let lead here."""
    assert site.ask("GET", "/", Host="evil.example")[0] == 400
    assert site.ask("POST", "/examples/0", Host="evil.example:80")[0] == 400
    for name in ("localhost", f"127.0.0.1:{site.port}", f"[::1]:{site.port}"):
        assert site.ask("GET", "/", Host=name)[0] == 200, name


def test_the_report(site: Site, run: Path) -> None:
    assert 'href="report"' in site.ask("GET", "/")[2].decode()
    status, headers, body = site.ask("GET", "/report")
    assert status == 200
    assert body == (run / "report.html").read_bytes()
    assert headers["Content-Security-Policy"] == "sandbox allow-scripts"


def test_weights_alone(found: Saved, dataset: Dataset) -> None:
    """No run, no report, no validation file, and a network without maps."""
    config = found.config.model_copy(
        update={
            "model": found.config.model.model_copy(update={"arch": "squeezenet1_1"}),
            "data": found.config.data.model_copy(update={"val_dataset": ""}),
        }
    )
    torch.manual_seed(0)
    network = models.build("squeezenet1_1", 3).eval()
    alone = found._replace(config=config, network=network, file=Path("there") / "some.pt")
    with serving(Demo(Answers(alone, CPU), [], None)) as site:
        page = site.ask("GET", "/")[2].decode()
        assert "<h1>some.pt</h1>" in page
        assert "squeezenet1_1 does not end in global average pooling" in page
        assert 'href="report"' not in page
        assert "Examples" not in page
        status, _, body = site.ask("GET", "/report")
        assert (status, list(json.loads(body))) == (404, ["error"])
        status, answer = site.classify(photos(dataset)[0].read_bytes())
        assert status == 200
        assert [top["map"] for top in answer["top"]] == [None] * len(NAMES)
