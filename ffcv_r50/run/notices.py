"""A cloud's word that it is about to take this machine away, asked of its metadata service."""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Literal

Provider = Literal["aws", "gcp", "azure"]

ADDRESSES: dict[Provider, str] = {
    "aws": "http://169.254.169.254",
    "gcp": "http://metadata.google.internal",
    "azure": "http://169.254.169.254",
}
SECONDS = 5.0
"""Between two questions, and the longest one may take. Clouds give 30 s (GCP, Azure) or 120 s (AWS)."""
LONGEST = 1 << 20
"""Bytes of an answer."""

# The metadata service is on the machine's own link: never through a proxy.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ask(provider: Provider, address: str) -> str | None:
    """What is going to happen to this machine, or None.

    Args:
        provider: whose service it is. AWS: ``spot/instance-action`` by IMDSv2; GCP:
            ``instance/preempted``; Azure: Scheduled Events, of which ``Preempt`` and ``Terminate`` count.
        address: of the service, such as ``http://169.254.169.254``.

    Raises:
        OSError: the service does not answer, or not as it should.
    """
    if provider == "aws":
        token = _get(
            f"{address}/latest/api/token",
            {"X-aws-ec2-metadata-token-ttl-seconds": "60"},
            method="PUT",
        )
        try:
            return _get(
                f"{address}/latest/meta-data/spot/instance-action",
                {"X-aws-ec2-metadata-token": token},
            )
        except urllib.error.HTTPError as error:
            if error.code == 404:  # as long as nothing is going to happen
                return None
            raise
    if provider == "gcp":
        path = "computeMetadata/v1/instance/preempted"
        said = _get(f"{address}/{path}", {"Metadata-Flavor": "Google"})
        return "instance/preempted is TRUE" if said.strip() == "TRUE" else None
    said = _get(f"{address}/metadata/scheduledevents?api-version=2020-07-01", {"Metadata": "true"})
    try:
        events = [event["EventType"] for event in json.loads(said)["Events"]]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise OSError("its answer is no list of scheduled events") from error
    ends = [event for event in events if event in ("Preempt", "Terminate")]
    return f"scheduled event {ends[0]}" if ends else None


def _get(url: str, headers: dict[str, str], method: str = "GET") -> str:
    request = urllib.request.Request(url, headers=headers, method=method)
    with _OPENER.open(request, timeout=SECONDS) as answer:
        return str(answer.read(LONGEST).decode(errors="replace"))


class Watch:
    """Asks again and again in a thread, until something is going to happen or the block is left.

    Args:
        provider: see :func:`ask`.
        address: see :func:`ask`.
        noticed: called once, from the thread, with what is going to happen.
        warn: called with a line when the service stops answering.
    """

    def __init__(
        self,
        provider: Provider,
        address: str,
        noticed: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        self._provider: Provider = provider
        self._address = address
        self._noticed = noticed
        self._warn = warn
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="notices", daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(3 * SECONDS)

    def _run(self) -> None:
        answers = True
        while not self._over.is_set():
            try:
                if notice := ask(self._provider, self._address):
                    self._noticed(notice)
                    return
                answers = True
            # http.client has exceptions of its own for what is not HTTP, which urllib lets through.
            except Exception as error:
                if answers:
                    self._warn(
                        f"{self._address} does not answer as {self._provider}'s metadata service ({error}); "
                        "until it does, interruptions come without notice"
                    )
                answers = False
            self._over.wait(SECONDS)
