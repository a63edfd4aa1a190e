"""The folder of a run: held by one process, refused to other recipes, started anew on demand."""

import json
import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ffcv_r50 import runs
from ffcv_r50.config import settings
from ffcv_r50.config.settings import Config
from ffcv_r50.errors import UserError
from ffcv_r50.files import YAML_BYTES
from ffcv_r50.logs import jsonl
from ffcv_r50.run import ends, run_folder, status, versions
from ffcv_r50.run.run_folder import RunFolder
from tests.conftest import RECIPE


def configuration(tmp_path: Path, *more: str) -> Config:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    files = ["--data.train_dataset=t", "--data.val_dataset=v", "--logging.folder=f"]
    return settings.load([f"--config={recipe}", *files, *more])


def begin(tmp_path: Path, *more: str) -> list[str]:
    folder = RunFolder(str(tmp_path / "run"))
    try:
        config = configuration(tmp_path, *more)
        changes = folder.changes(config)
        folder.begin(config, world_size=1)
        return changes
    finally:
        folder.release()


def test_a_folder_in_use_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "LOCK_SECONDS", 0.0)
    first = RunFolder(str(tmp_path))
    with pytest.raises(UserError, match=rf"in use by another run \(process {os.getpid()} on "):
        RunFolder(str(tmp_path))
    first.release()
    RunFolder(str(tmp_path)).release()


def test_another_recipe_is_refused_with_every_difference(tmp_path: Path) -> None:
    assert begin(tmp_path) == []
    changed = ("--training.momentum=0.8", "--schedule.lr={0: 0.002, 1: 0.01, 3: 0.0}")
    with pytest.raises(UserError) as refused:
        begin(tmp_path, *changed)
    assert "training.momentum (0.9 -> 0.8)" in str(refused.value)
    assert "schedule.lr" in str(refused.value)
    with pytest.raises(UserError) as refused:
        begin(tmp_path, *changed, "--resume.allow=schedule.lr")
    assert "schedule.lr" not in str(refused.value).partition(";")[0]
    assert begin(tmp_path) == []  # a refused start has not changed what is saved


def test_allowed_differences_are_named_and_hold_from_then_on(tmp_path: Path) -> None:
    begin(tmp_path)
    changed = ("--training.momentum=0.8", "--resume.allow=training.momentum")
    assert begin(tmp_path, *changed) == ["training.momentum (0.9 -> 0.8)"]
    assert begin(tmp_path, "--training.momentum=0.8") == []


def test_where_things_lie_may_always_differ(tmp_path: Path) -> None:
    begin(tmp_path)
    assert begin(tmp_path, "--data.num_workers=7", "--dist.timeout_seconds=5") == []


def test_an_unknown_key_in_allow_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"training\.epoch is not a setting.*training\.epochs\?"):
        configuration(tmp_path, "--resume.allow=training.epoch")


def test_starting_anew_puts_state_log_and_settings_aside(tmp_path: Path) -> None:
    begin(tmp_path)
    folder = RunFolder(str(tmp_path / "run"))
    (folder.checkpoints / "last.pt").write_text("state")
    folder.log.write_text("{}\n")
    folder.put_aside()
    assert list(folder.checkpoints.iterdir()) == []
    assert not folder.log.exists()
    [aside] = folder.path.glob("before-*")
    names = {str(path.relative_to(aside)) for path in aside.rglob("*")}
    assert names == {"checkpoints", "checkpoints/last.pt", "log.jsonl", "config.yaml"}
    folder.release()
    assert begin(tmp_path, "--training.momentum=0.8") == []  # a new run may have another recipe


def test_what_killed_processes_left_half_written_is_removed(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path / "run"))
    for half in (folder.path / ".log.jsonl.7.tmp", folder.checkpoints / ".last.pt.7.tmp"):
        half.write_text("half")
    (folder.checkpoints / "last.pt").write_text("whole")
    folder.release()
    begin(tmp_path)
    assert [path.name for path in folder.checkpoints.iterdir()] == ["last.pt"]
    assert not list(folder.path.glob(".*.tmp"))


def test_each_start_is_recorded(tmp_path: Path) -> None:
    begin(tmp_path)
    begin(tmp_path)
    starts = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert len(starts) == 2
    assert starts[1]["versions"] == versions.current()
    assert starts[1]["format"] == versions.FORMAT


def full(path: Path) -> None:
    """Make the next atomic write of ``path`` meet a full disk."""
    path.with_name(f".{path.name}.{os.getpid()}.tmp").symlink_to("/dev/full")


def test_a_full_disk_at_the_start_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    full(tmp_path / "run" / "environment.json")
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(()))  # keeps the trap
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        begin(tmp_path)


def test_a_full_disk_does_not_change_how_a_run_ends(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    folder.set_status("running")
    full(tmp_path / status.STATUS)
    folder.set_status("stopped", 75)
    assert folder.status()["state"] == "running"
    folder.release()


@pytest.mark.parametrize(
    ("state", "then", "answer"),
    [
        ("stopped", {}, True),
        ("running", {}, False),
        ("stopped", {"TORCHELASTIC_RUN_ID": "another"}, False),  # stopped yesterday
        ("stopped", {"WORLD_SIZE": "4"}, False),  # by torchrun, as machines came or went
    ],
)
def test_a_restart_may_be_the_answer_to_a_stop(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    state: str,
    then: dict[str, str],
    answer: bool,
) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "id", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    folder = RunFolder(str(tmp_path))
    folder.set_status(state)
    for name, value in then.items():
        monkeypatch.setenv(name, value)
    assert folder.stopped_in_this_launch() == answer
    folder.release()


def test_a_row_of_the_log_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    jsonl.append(log, {"epoch": 0})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + 5, limits[1]))
    try:
        with pytest.raises(OSError, match=r"No space left|File too large"):
            jsonl.append(log, {"epoch": 1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    jsonl.append(log, {"epoch": 1})
    assert [row["epoch"] for row in jsonl.read(log)] == [0, 1]
    assert log.read_text().count("\n") == 2


@pytest.mark.parametrize(
    "content",
    ["{{{", "- a list", "", "\ud800", "a: 2001-13-45", "a: &a {b: 1}\nc: {<<: [*a, *a]}",
     " " * (YAML_BYTES + 1)],
)  # fmt: skip
def test_a_damaged_configuration_is_one_line(tmp_path: Path, content: str) -> None:
    begin(tmp_path)
    (tmp_path / "run" / "config.yaml").write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(UserError, match="restore it"):
        begin(tmp_path)


def test_a_damaged_environment_file_stops_nobody(tmp_path: Path) -> None:
    begin(tmp_path)
    environment = tmp_path / "run" / "environment.json"
    environment.write_text("[{")
    begin(tmp_path)
    assert len(json.loads(environment.read_text())) == 1
    assert environment.with_name("environment.damaged.json").read_text() == "[{"


def test_only_our_own_half_written_files_are_removed(tmp_path: Path) -> None:
    begin(tmp_path)
    folder = tmp_path / "run"
    ours = [".config.yaml.17.tmp", ".weights.pt.17.tmp", "checkpoints/.last.pt.17.tmp"]
    others = [".mine.tmp", ".config.yaml.tmp", ".notes.17.tmp"]
    for name in (*ours, *others):
        (folder / name).write_text("half")
    begin(tmp_path)
    assert [name for name in (*ours, *others) if (folder / name).exists()] == others


def test_a_full_disk_does_not_keep_the_folder_from_being_held(
    tmp_path: Path,
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        RunFolder(str(tmp_path)).release()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# ------------------------------------------------------------------------- folders from somebody else


@pytest.mark.parametrize(
    "name",
    ["lock", "status.json", "environment.json", "config.yaml", "log.jsonl", "log.csv", "steps.jsonl",
     "report.html", "weights.pt", "weights_ema.pt", "checkpoints", "ledger", "tensorboard",
     "sinks/wandb.json"],
)  # fmt: skip
def test_what_a_link_in_the_folder_leads_to_is_left_alone(tmp_path: Path, name: str) -> None:
    target = tmp_path / "precious"
    if name in run_folder.FOLDERS:
        target.mkdir()
        (target / "last.pt").write_text("precious")
    else:
        target.write_text("precious")
    link = tmp_path / "run" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(target)
    expected = (
        f"{link}: is a link to {target}; a run writes into its own folder only: remove it, or"
    )
    with pytest.raises(UserError, match=f"^{expected}"):
        RunFolder(str(tmp_path / "run"))
    kept = target / "last.pt" if target.is_dir() else target
    assert kept.read_text() == "precious"
    assert sorted(os.listdir(tmp_path / "run")) == [name.partition("/")[0]], (
        "nothing is half-written"
    )


def test_a_link_to_nowhere_makes_no_file(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").symlink_to(tmp_path / "made")
    with pytest.raises(UserError, match=r"log\.jsonl: is a link to"):
        RunFolder(str(tmp_path / "run"))
    assert not (tmp_path / "made").exists()


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    assert begin(tmp_path) == []
    assert (tmp_path / "disk" / "config.yaml").exists()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["lock", "status.json", "config.yaml", "log.jsonl", "steps.jsonl"])
def test_nobody_waits_for_a_pipe(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}: is no file: remove it, or choose another"):
        RunFolder(str(tmp_path))
    assert runs.read(tmp_path).epoch == 0


@pytest.mark.parametrize(
    ("name", "what"), [("checkpoints", "is no folder"), ("log.jsonl", "is no file")]
)
def test_a_folder_is_no_file(tmp_path: Path, name: str, what: str) -> None:
    (tmp_path / name).write_text("") if "folder" in what else (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"{name}: {what}: remove it"):
        RunFolder(str(tmp_path))


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder that every user may reach; the test may go on as one who is not root."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        yield Path(name)
        os.seteuid(os.getuid())


@pytest.mark.parametrize("name", ["lock", "log.jsonl", "steps.jsonl", "checkpoints", ""])
def test_what_belongs_to_another_user_is_one_line(nobody: Path, name: str) -> None:
    path = nobody / name
    if name in ("", "checkpoints"):
        path.mkdir(exist_ok=True)
    else:
        path.write_text("")
    path.chmod(0o555)
    if os.geteuid() == 0:
        os.seteuid(65534)
    expected = (
        f"^{path}: cannot be read and written by this user; continue the run as its owner, or choose"
        if name
        else f"^logging.folder={nobody}: cannot be made or written \\(Permission denied\\); choose another"
    )
    with pytest.raises(UserError, match=expected):
        RunFolder(str(nobody))
    os.seteuid(os.getuid())
    assert sorted(os.listdir(nobody)) == [name] * bool(name), "nothing is half-written"


@pytest.mark.parametrize(
    "written",
    [{"state": ["failed"], "exit_code": "2", "reason": {}}, [1], 7, "[" * 100_000],
)
def test_a_status_of_other_kinds_says_nothing(tmp_path: Path, written: object) -> None:
    text = written if isinstance(written, str) else json.dumps(written)
    (tmp_path / "status.json").write_text(text)
    assert status.read_status(tmp_path) == {}
    seen = ends.look(tmp_path)
    assert ends.judge(1, ends.Seen({}, None), seen) == ("failed", "exit code 1") or "state" in text
    assert ends.own_code(1, ends.Seen({}, None), seen) == 1
