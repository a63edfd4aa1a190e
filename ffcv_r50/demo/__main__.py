"""A page to try a trained network on photos.

::

    python -m ffcv_r50.demo RUN|WEIGHTS [--host 127.0.0.1] [--port 7860] [--weights ema] [--device cuda]
        [--section.key=value ...]

RUN is a run's folder, WEIGHTS a file in one, or any other with ``--config=RECIPE``. The page takes photos
from files or the camera, and has examples from the validation file where that is there; it shows the five
likeliest classes and, for networks that end in global average pooling and a linear layer, where in the
photo each is seen. Unless another ``--host`` is given, only this machine reaches it.
"""

import contextlib
import ipaddress
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np

from ffcv_r50 import predict, saved
from ffcv_r50.config import command_line
from ffcv_r50.demo import examples
from ffcv_r50.demo.answers import Answers
from ffcv_r50.errors import FINISHED, UserError, exit_with
from ffcv_r50.registry import Range

LOOPBACK = ["localhost", "127.0.0.1", "[::1]"]
"""What browsers on this machine call it."""


class Asked(predict.Chosen):
    """Which network the page is about, and where it is; every other word is a setting."""

    host: str = "127.0.0.1"
    """Address to listen at; `0.0.0.0` is all of this machine's. Browsers give their camera only to pages
    from this machine, or over https, which a proxy has to add."""
    port: Annotated[int, Range(at_least=0, at_most=65535)] = 7860
    """To listen at; 0 is a free one."""


def main() -> None:
    """Serve what the command line names; exit as :func:`errors.exit_with` says."""
    exit_with(lambda: serve(sys.argv[1:]))


def serve(argv: Sequence[str]) -> int:
    """Serve the page until SIGINT or SIGTERM.

    Args:
        argv: see the module's text.

    Raises:
        UserError: no network, a missing package, an address that cannot be used, or a fault in an option.
    """
    named, asked, words = command_line.with_names(Asked, argv or ["--help"], __doc__ or "", most=1)
    if not named:
        raise UserError("command line: no run or weights; write RUN before the options")
    try:
        from ffcv_r50.demo.server import Demo
    except ImportError as error:
        raise UserError(f"the demo needs {error.name}: pip install 'ffcv_r50[demo]'") from error
    with contextlib.closing(listen(asked.host, asked.port)) as listening:
        path, device = Path(named[0]), predict.device_of(asked.device)
        found = saved.find(path, asked.weights, words, device)
        answers = Answers(found, device)
        # Compiles what crops, or the first photo would wait for it.
        answers.answer(lambda: np.zeros((64, 64, 3), np.uint8))
        shown = examples.of(found)
        host, port = listening.getsockname()[:2]
        local = ipaddress.ip_address(host).is_loopback
        demo = Demo(answers, shown, saved.run_of(path), [*LOOPBACK, asked.host] if local else ())
        listening.listen()  # before anybody is told to come
        address = f"[{host}]" if ":" in host else host
        where = "this machine only" if local else "everybody who reaches this address"
        print(f"http://{address}:{port} shows {found.file} to {where}; Ctrl-C ends it", flush=True)
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it when it has ended
            demo.server().run([listening])
    return FINISHED


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address, so that nobody else gets it; it does not listen yet.

    Raises:
        UserError: there is no such address, or it cannot be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
        except BaseException:
            found.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"command line: --host={host} --port={port}: cannot listen there ({reason}); choose another"
        ) from error
    return found


if __name__ == "__main__":
    main()
