"""The page over HTTP: what it may ask for, and how much of it."""

import contextlib
import json
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

import anyio
import anyio.to_thread
import numpy as np
import numpy.typing as npt
import uvicorn
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Route

from ffcv_r50 import saved
from ffcv_r50.demo import uploads
from ffcv_r50.demo.answers import Answers, shown
from ffcv_r50.demo.examples import Example
from ffcv_r50.demo.limits import Rate
from ffcv_r50.demo.uploads import Refused
from ffcv_r50.report import page as report

HERE = Path(__file__).parent
CONNECTIONS = 100
"""At a time; more are answered with 503."""
PLACES = 16
"""Photos that are uploaded, wait or are looked at; there is no room for more."""
UPLOAD_SECONDS = 60
"""For one upload."""
BURST = 30
"""Photos that one address may send at once."""
SECONDS_A_PHOTO = 1.0
"""After that."""

# Nothing from another host, ever; nothing inside of another's page; camera for this page alone.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self)",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
# A run's folder may come from a stranger, and so may its report: its scripts get an origin of their own.
REPORT_POLICY = "sandbox allow-scripts"


class Demo:
    """The page of one network.

    Args:
        answers: asks the network.
        examples: of the validation file.
        folder: of the run; None where there is none.
        names: of this server, as browsers may call it. Others are refused: a page from elsewhere could
            otherwise have its name lead here and read what is here. Empty is any.
    """

    def __init__(
        self,
        answers: Answers,
        examples: Sequence[Example],
        folder: Path | None,
        names: Sequence[str] = (),
    ) -> None:
        self._answers, self._examples, self._folder = answers, examples, folder
        self._rate = Rate(BURST, SECONDS_A_PHOTO)
        self._taken = 0
        self._one_at_a_time = anyio.CapacityLimiter(1)
        self.app = Starlette(
            routes=[
                Route("/", self._page),
                Route("/page.css", lambda _: FileResponse(HERE / "page.css", headers=HEADERS)),
                Route("/page.js", lambda _: FileResponse(HERE / "page.js", headers=HEADERS)),
                Route("/report", self._report),
                Route("/classify", self._classify, methods=["POST"]),
                Route("/examples/{number:int}", self._example, methods=["POST"]),
            ],
            middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[*names])] if names else [],
            exception_handlers={Refused: _refuse, Exception: _fault},
        )

    def server(self) -> uvicorn.Server:
        """What serves it."""
        return uvicorn.Server(
            uvicorn.Config(
                self.app,
                access_log=False,
                lifespan="off",
                limit_concurrency=CONNECTIONS,
                log_level="warning",
                server_header=False,
                timeout_graceful_shutdown=5,
                ws="none",
            )
        )

    async def _page(self, request: Request) -> Response:
        found = self._answers.found
        environment = Environment(
            loader=FileSystemLoader(HERE),
            autoescape=True,  # names of classes and files are text, whatever they hold
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        text = environment.get_template("page.html").render(
            title=shown((self._folder or found.file).resolve().name),
            arch=found.config.model.arch,
            classes=len(found.classes),
            top_1=saved.logged_top_1(found),
            side=found.config.validation.resolution,
            has_maps=self._answers.has_maps,
            has_report=self._has_report,
            examples=[(e.thumbnail, shown(found.classes[e.label])) for e in self._examples],
            kinds=uploads.KINDS,
            most_bytes=uploads.MOST_BYTES,
            most_pixels=uploads.MOST_PIXELS,
            most_photos=BURST,
        )
        return HTMLResponse(text.encode("utf-8", "replace"), headers=HEADERS)

    @property
    def _has_report(self) -> bool:
        return self._folder is not None and (self._folder / report.NAME).is_file()

    async def _report(self, request: Request) -> Response:
        if self._folder is None or not self._has_report:
            raise Refused(404, "There is no report. Make it: python -m ffcv_r50.report RUN")
        headers = {**HEADERS, "Content-Security-Policy": REPORT_POLICY}
        return FileResponse(self._folder / report.NAME, headers=headers)

    async def _classify(self, request: Request) -> Response:
        async with self._place(request):
            content = await _body(request)
            return await self._answer(lambda: uploads.pixels_of(content))

    async def _example(self, request: Request) -> Response:
        number: int = request.path_params["number"]
        if number >= len(self._examples):
            raise Refused(404, "There is no such example; load the page again.")
        async with self._place(request):
            return await self._answer(self._examples[number].pixels)

    async def _answer(self, read: Callable[[], npt.NDArray[np.uint8]]) -> Response:
        answer = await anyio.to_thread.run_sync(
            self._answers.answer, read, limiter=self._one_at_a_time
        )
        return _json(200, answer)

    @contextlib.asynccontextmanager
    async def _place(self, request: Request) -> AsyncIterator[None]:
        """A place in the queue.

        Raises:
            Refused: there is none, or not so soon for this address.
        """
        seconds = self._rate.take(request.client.host if request.client else "")
        if seconds:
            wait = math.ceil(seconds)
            raise Refused(429, f"Too many photos at once. Try again in {wait} s.", wait)
        if self._taken == PLACES:
            raise Refused(503, "The server is busy with other photos. Try again in 10 s.", 10)
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1


async def _body(request: Request) -> bytes:
    """What is uploaded, which ends.

    Raises:
        Refused: it is too large, takes too long, or ends early.
    """
    content, size = bytearray(), 0
    try:
        with anyio.fail_after(UPLOAD_SECONDS):
            async for chunk in request.stream():
                size += len(chunk)
                # Read to its end in any case: a browser shows no answer that comes before.
                if size <= uploads.MOST_BYTES:
                    content += chunk
    except TimeoutError as error:
        raise Refused(408, f"The upload took longer than {UPLOAD_SECONDS} s.") from error
    except ClientDisconnect as error:
        raise Refused(400, "The upload ended early.") from error
    if size > uploads.MOST_BYTES:
        raise uploads.too_large(size)
    return bytes(content)


def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    response = _json(error.status, {"error": str(error)})
    if error.seconds is not None:
        response.headers["Retry-After"] = f"{error.seconds}"
    return response


def _fault(request: Request, error: Exception) -> Response:
    """What is not foreseen; uvicorn tells whoever started the server more."""
    return _json(500, {"error": "The server failed at this image. Its terminal says more."})


def _json(status: int, content: Mapping[str, object]) -> Response:
    # As ASCII: names may hold characters that UTF-8 has no bytes for.
    return Response(json.dumps(content), status, HEADERS, "application/json")
