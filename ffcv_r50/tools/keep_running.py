"""Start a training again after a fault, and stop it in time where the machine is taken away.

::

    python -m ffcv_r50.tools.keep_running RUN_FOLDER [--provider=aws] -- COMMAND ...

COMMAND is what trains into RUN_FOLDER (``python train_imagenet.py ...`` or ``torchrun ...``); it continues
by itself where the folder left off. After each end of it:

- finished: exit 0;
- stopped as asked (a signal to it or to this program, or a cloud's interruption notice, which becomes
  SIGTERM: the state is saved): exit 75; the same command continues, after the next boot too;
- lost (killed, out of memory): started again after a while, as long as the run comes further between faults;
- anything else (bad input, a bug): exit with its code; trying again would not help.

Each start and end is a line in RUN_FOLDER.starts.log. ``--unit`` prints a systemd unit that does all
this after each boot. In a SLURM job slurm/supervise.py does it.
"""

import shlex
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from ffcv_r50.config import command_line
from ffcv_r50.errors import BAD_INPUT, FINISHED, STOPPED_AS_ASKED, UserError, exit_with, one_line
from ffcv_r50.files import no_link
from ffcv_r50.registry import Options, Range
from ffcv_r50.run import ends, notices

LONGEST_WAIT = 300.0


class Asked(Options):
    """How it is kept running."""

    provider: Literal["", "aws", "gcp", "azure"] = ""
    """The cloud whose interruption notice stops the run; none where it is empty."""
    address: str = ""
    """Of its metadata service, where that is not the usual one."""
    wait: Annotated[float, Range(at_least=0)] = 5.0
    """Seconds before a run that was lost is started again; twice as long after each loss without
    progress, up to five minutes."""
    unit: bool = False
    """Print a systemd unit instead of training."""


def keep_running(argv: Sequence[str]) -> int:
    """Start, wait, judge, and start again.

    Returns:
        The exit code.

    Raises:
        UserError: a fault on the command line.
    """
    own, command = _split(argv)
    names, asked, unknown = command_line.with_names(Asked, own or ["--help"], __doc__ or "", most=1)
    command_line.refuse(unknown)
    if not names or not command:
        raise UserError("command line: write RUN_FOLDER [--option=value ...] -- COMMAND ...")
    if asked.address and not asked.provider:
        raise UserError(
            "command line: --address: has no effect without --provider=aws, gcp or azure"
        )
    if asked.unit:
        print(unit(argv))
        return FINISHED
    keeper = Keeper(Path(names[0]), command, asked)
    keeper.handle_signals()
    if not asked.provider:
        return keeper.run()
    address = (asked.address or notices.ADDRESSES[asked.provider]).rstrip("/")
    with notices.Watch(asked.provider, address, keeper.interrupted, keeper.say):
        return keeper.run()


def _split(argv: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Our own words, and the command behind ``--``."""
    at = argv.index("--") if "--" in argv else len(argv)
    return argv[:at], argv[at + 1 :]


class Keeper:
    """One training, kept running.

    Args:
        folder: of the run.
        command: that trains.
        asked: the options.
    """

    def __init__(self, folder: Path, command: Sequence[str], asked: Asked) -> None:
        self._folder = folder
        self._command = command
        self._wait = asked.wait
        self._stop = threading.Event()
        self._asked_at = 0.0
        # nohup has SIGHUP ignored.
        hangup = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else []
        self._signals = [*ends.SIGNALS, *hangup]

    def handle_signals(self) -> None:
        """From now on signals stop the run; only in the main thread."""
        for number in self._signals:
            signal.signal(number, lambda number, _: self._asked_to_stop(number))

    def run(self) -> int:
        """Until it ends for good; returns the exit code."""
        faults = 0
        while True:
            before = ends.look(self._folder)
            began = time.monotonic()
            self.say(f"start: {shlex.join(self._command)}")
            try:
                process = ends.start(
                    self._command, self._asked_to_stop, self._signals, own_group=True
                )
            except OSError as error:
                raise UserError(
                    f"command line: {self._command[0]} cannot be started: {error.strerror}"
                ) from error
            if self._stop.is_set():  # asked before there was a process
                process.send_signal(signal.SIGTERM)
            code = process.wait()
            after = ends.look(self._folder)
            end, reason = ends.judge(code, before, after)
            seconds = f"after {time.monotonic() - began:,.0f} s"
            if end == "finished":
                self.say(f"finished {seconds}")
                return FINISHED
            if end == "failed":
                code = ends.own_code(code, before, after)
                again = "correct it" if code == BAD_INPUT else "trying again would not help"
                self.say(f"failed {seconds} with exit code {code}: {reason}; {again}")
                return code
            faults = 1 if after.checkpoint != before.checkpoint else faults + 1
            if end == "stopped" or self._stop.is_set():
                if self._stop.is_set():
                    seconds += f", {time.monotonic() - self._asked_at:.1f} s after it was asked"
                self.say(f"{reason} {seconds}; the same command continues")
                return STOPPED_AS_ASKED
            if faults >= ends.RESTARTS_WITHOUT_PROGRESS:
                self.say(f"lost {seconds}: {reason}; {faults} faults without progress: given up")
                return 1
            wait = min(self._wait * 2 ** (faults - 1), LONGEST_WAIT)
            self.say(f"lost {seconds}: {reason}; started again in {wait:,.0f} s")
            if self._stop.wait(wait):
                self.say("stopped as asked; the same command continues")
                return STOPPED_AS_ASKED

    def interrupted(self, notice: str) -> None:
        """The machine is about to go: have the run save its state and stop."""
        self.say(f"interruption notice: {notice}; stopping")
        # To the main thread, which waits for the process: only there a signal ends the waiting.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    def say(self, text: str) -> None:
        """A line with the time, to standard error and into the log of starts."""
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {one_line(text)}\n"
        for write in (self._to_log, sys.stderr.write):
            try:
                write(line)
            except OSError:  # a full disk, or a terminal that is gone, stops no training
                continue

    def _to_log(self, line: str) -> None:
        path = self._folder.with_name(f"{self._folder.name}.starts.log")
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", opener=no_link) as file:
            file.write(line)

    def _asked_to_stop(self, number: int) -> bool:
        """Note it; the run is told too."""
        if not self._stop.is_set():
            self._asked_at = time.monotonic()
            self._stop.set()
        return True


def unit(argv: Sequence[str]) -> str:
    """A systemd unit that runs this very command after each boot, and again after a fault of its own."""
    words = [word for word in argv if not word.startswith("--unit")]
    command = " ".join(
        _quoted(word) for word in (sys.executable, "-m", "ffcv_r50.tools.keep_running", *words)
    )
    return f"""\
[Unit]
Description={words[0].replace("%", "%%")} kept running
Wants=network-online.target
After=network-online.target

[Service]
WorkingDirectory={str(Path.cwd()).replace("%", "%%")}
ExecStart={command}
# A run that is worth another start gets it from the program; systemd starts the program where that was killed.
Restart=on-abnormal
RestartSec=10
SuccessExitStatus={STOPPED_AS_ASKED}
# SIGTERM goes to the program alone, which passes it on; what is left after the time-out is killed.
KillMode=mixed
TimeoutStopSec=120

[Install]
WantedBy=multi-user.target"""


def _quoted(word: str) -> str:
    """A word of a command line as systemd reads it: % and $ stand for themselves."""
    plain = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    plain = plain.replace("\n", "\\n")
    return f'"{plain}"' if plain != word or not word or set(word) & set(" \t'{}[];") else word


if __name__ == "__main__":
    exit_with(lambda: keep_running(sys.argv[1:]))
