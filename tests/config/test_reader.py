"""The strict reader: what it accepts, and the exact line that it answers everything else with."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import PrivateAttr

from ffcv_r50.config import command_line, declaration, reader, reference
from ffcv_r50.config.declaration import Given
from ffcv_r50.errors import InvalidSetting, UserError
from ffcv_r50.keyframes import Keyframes
from ffcv_r50.registry import Options, Range

Minute = Annotated[float, Range(at_least=0)]


class Oven(Options):
    heat: Annotated[float, Range(above=0, at_most=300)]
    """Degrees."""
    minutes: int = 10
    """How long.

    Counted from when it is hot."""
    fan: bool = False
    """Whether it blows."""
    mode: Literal["top", "bottom"] = "top"
    """Which bars glow."""
    window: tuple[Minute, Minute] = (0.0, 1 / 3)
    """From and to."""
    name: str = ""
    """What it is called."""
    maker: str = "we"
    """Whose it is."""
    rack: Annotated[int, Range(at_least=1, below=5)] | None = None
    """Where the tray goes."""
    ramp: Keyframes = Keyframes({0: 20})
    """Degrees by minute."""


class Kitchen(Options):
    oven: Oven
    cook: str | None = None
    """Who."""
    _remarks: tuple[str, ...] = PrivateAttr(default=())

    FOREIGN: ClassVar = {"stove.flame": "write oven.heat"}

    def model_post_init(self, _context: Any) -> None:
        if self.cook == "nobody" and self.oven.fan:
            raise InvalidSetting("oven.fan", "needs a cook")


def from_yaml(tmp_path: Path, text: str) -> Kitchen:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    return declaration.build(Kitchen, reader.from_file(Kitchen, str(path)))


def error_of_yaml(tmp_path: Path, text: str) -> str:
    with pytest.raises(UserError) as caught:
        from_yaml(tmp_path, text)
    return str(caught.value).replace(str(tmp_path) + "/", "")


def error_of(*argv: str) -> str:
    with pytest.raises(UserError) as caught:
        command_line.read(Kitchen, argv)
    return str(caught.value)


# ---------------------------------------------------------------------------------- what it reads


def test_every_type_reads_from_a_file(tmp_path: Path) -> None:
    kitchen = from_yaml(
        tmp_path,
        """
        cook: Ada   # a comment
        oven:
          heat: 180
          minutes: 25
          fan: true
          mode: bottom
          window: [0.5, 2]
          name: 007
          rack: 3
          ramp: {0: 20, 2.5: 1e2, interpolation: cosine}
        """,
    )
    assert kitchen == Kitchen(
        cook="Ada",
        oven=Oven(
            heat=180.0,
            minutes=25,
            fan=True,
            mode="bottom",
            window=(0.5, 2.0),
            name="007",
            rack=3,
            ramp=Keyframes({0: 20, 2.5: 100}, "cosine"),
        ),
    )
    assert type(kitchen.oven.heat) is float


def test_the_same_from_the_command_line() -> None:
    kitchen = command_line.read(
        Kitchen,
        [
            *("--cook=Ada", "--oven.heat", "180", "--oven.minutes=25", "--oven.fan=1"),
            *("--oven.mode=bottom", "--oven.window=[0.5, 2]", "--oven.name=007", "--oven.rack=3"),
            "--oven.ramp={0: 20, 2.5: 1e2, interpolation: cosine}",
        ],
    )
    assert kitchen.oven.ramp == Keyframes({0: 20, 2.5: 100}, "cosine")
    assert kitchen.oven.name == "007"
    assert kitchen.oven.fan is True
    assert (kitchen.oven.heat, kitchen.oven.window) == (180.0, (0.5, 2.0))
    assert (kitchen.oven.rack, kitchen.oven.minutes, kitchen.cook) == (3, 25, "Ada")


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "1E-4", ".0001", "0.0001", "+1e-04"])
def test_every_way_to_write_a_float_is_a_float(tmp_path: Path, text: str) -> None:
    # YAML 1.1, and so PyYAML, takes 1e-4 for a string.
    assert from_yaml(tmp_path, f"oven: {{heat: {text}}}").oven.heat == 1e-4
    assert command_line.read(Kitchen, [f"--oven.heat={text}"]).oven.heat == 1e-4


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("False", False), ("1", True), ("0", False)]
)
def test_booleans(tmp_path: Path, text: str, value: bool) -> None:
    assert from_yaml(tmp_path, f"oven: {{heat: 1, fan: {text}}}").oven.fan is value
    assert command_line.read(Kitchen, ["--oven.heat=1", f"--oven.fan={text}"]).oven.fan is value


def test_an_empty_text_is_for_strings_that_are_empty_by_default(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("oven: {heat: 1, name: 007}")
    given = reader.from_file(Kitchen, str(path))
    given |= reader.from_arguments(Kitchen, command_line.split(["--oven.name="]))
    assert declaration.build(Kitchen, given).oven.name == ""
    assert error_of("--oven.heat=1", "--oven.maker=").endswith("expected a string, got nothing")


@pytest.mark.parametrize("text", ["null", "~"])
def test_null_is_for_settings_that_may_be_absent(tmp_path: Path, text: str) -> None:
    assert from_yaml(tmp_path, f"oven:\n  heat: 1\n  rack: {text}\n").oven.rack is None
    assert command_line.read(Kitchen, ["--oven.heat=1", f"--oven.rack={text}"]).oven.rack is None
    message = error_of("--oven.heat=1", f"--oven.name={text}")
    assert message.startswith("command line: --oven.name: expected a string, got ")


@pytest.mark.parametrize("text", ["12", "1e3", "true", "2020-01-01", "a: b", "#1", "{x", "-", "@"])
def test_a_string_stays_what_was_typed(text: str) -> None:
    assert command_line.read(Kitchen, ["--oven.heat=1", f"--oven.name={text}"]).oven.name == text


def test_later_sources_win_and_defaults_fill_in(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("oven: {heat: 100, minutes: 5}")
    words = command_line.split(["--oven.heat=200"])
    given = {
        **reader.from_file(Kitchen, str(path)),
        **reader.from_arguments(Kitchen, words),
    }
    assert declaration.build(Kitchen, given) == Kitchen(oven=Oven(heat=200, minutes=5))
    assert given["oven.minutes"] == Given(5, f"{path}:1: oven.minutes")


def test_both_ends_of_a_range_count_as_declared() -> None:
    assert command_line.read(Kitchen, ["--oven.heat=300", "--oven.rack=1"]).oven.rack == 1


def test_an_empty_file_and_an_empty_section_give_nothing(tmp_path: Path) -> None:
    for text in ("", "# only a comment\n", "oven:\n"):
        path = tmp_path / "x.yaml"
        path.write_text(text)
        assert reader.from_file(Kitchen, str(path)) == {}


def test_dashes_count_as_underscores() -> None:
    assert command_line.split(["--world-size", "-8", "--a.b-c=-1"]) == {
        "world_size": ["-8"],
        "a.b_c": ["-1"],
    }


# ----------------------------------------------------------------------------------- what it says


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("oven:\n  heat: 1\n  minuts: 3\n", "x.yaml:3: oven.minuts is not a setting; did you mean oven.minutes?"),
        ("oven: {heat: 1}\nminutes: 3\n", "x.yaml:2: minutes is not a setting; did you mean oven.minutes?"),
        ("ovn:\n  heat: 1\n", "x.yaml:2: ovn.heat is not a setting; did you mean oven.heat?"),
        ("oven: {heat: 1}\nfridge: {qqqq: 1}\n", "x.yaml:2: fridge.qqqq is not a setting; --help lists the settings"),
        ("oven: {heat: 1}\nremarks: [a]\n", "x.yaml:2: remarks is not a setting; --help lists the settings"),
        ("oven:\n  heat: 1\n  heat: 2\n", "x.yaml:3: oven.heat: is given twice, first in line 2"),
        ("oven: {heat: 1}\noven: {fan: 1}\n", "x.yaml:2: oven: is given twice, first in line 1"),
        ("oven:\n  heat: hot\n", "x.yaml:2: oven.heat: expected a number above 0 and at most 300, got 'hot'"),
        ("oven:\n  heat: '1'\n", "x.yaml:2: oven.heat: expected a number above 0 and at most 300, got the quoted text \"1\""),
        ("oven:\n  heat: 0\n", "x.yaml:2: oven.heat: expected a number above 0 and at most 300, got 0"),
        ("oven:\n  heat: 300.5\n", "x.yaml:2: oven.heat: expected a number above 0 and at most 300, got 300.5"),
        ("oven:\n  heat: .nan\n", "x.yaml:2: oven.heat: expected a number above 0 and at most 300, got '.nan'"),
        ("oven:\n  heat: 1e999\n", "x.yaml:2: oven.heat: expected a number, got '1e999'"),
        ("oven:\n  heat: [1]\n", "x.yaml:2: oven.heat: expected a number above 0 and at most 300, got a list"),
        ("oven:\n  heat:\n", "x.yaml:2: oven.heat: expected a number above 0 and at most 300, got nothing"),
        ("oven: {heat: 1, minutes: 2.5}", "x.yaml:1: oven.minutes: expected an integer, got '2.5'"),
        ("oven: {heat: 1, minutes: 010}", "x.yaml:1: oven.minutes: expected an integer, got '010'"),
        (f"oven: {{heat: 1, rack: 1{'0' * 400}}}", f"x.yaml:1: oven.rack: expected an integer at least 1 and below 5 or null, got 1{'0' * 400}"),
        ("oven: {heat: 1, fan: yes}", "x.yaml:1: oven.fan: expected true or false, got 'yes'"),
        ("oven: {heat: 1, mode: bottm}", "x.yaml:1: oven.mode: expected top or bottom, got 'bottm'; did you mean bottom?"),
        ("oven: {heat: 1, mode: x}", "x.yaml:1: oven.mode: expected top or bottom, got 'x'"),
        ("oven: {heat: 1, window: [1]}", "x.yaml:1: oven.window: expected a list of two numbers at least 0, got a list"),
        ("oven: {heat: 1, window: 1}", "x.yaml:1: oven.window: expected a list of two numbers at least 0, got '1'"),
        ("oven: {heat: 1, window: [0, -1]}", "x.yaml:1: oven.window: expected a list of two numbers at least 0, got -1"),
        ("oven: {heat: 1, name: {a: 1}}", "x.yaml:1: oven.name: expected a string, got a table"),
        ("oven: {heat: 1, rack: 5}", "x.yaml:1: oven.rack: expected an integer at least 1 and below 5 or null, got 5"),
        ("oven: {heat: 1, ramp: 3}", "x.yaml:1: oven.ramp: expected a table of keyframes {epoch: value, ...}, got '3'"),
        ("oven: {heat: 1, ramp: {}}", "x.yaml:1: oven.ramp: expected a table of keyframes {epoch: value, ...}, got none"),
        ("oven: {heat: 1, ramp: {0: [1]}}", "x.yaml:1: oven.ramp: expected a table of keyframes {epoch: value, ...}, got a table"),
        ("oven:\n  heat: 1\n  ramp: {0: 1, 3: 1, 2: 1}", "x.yaml:3: oven.ramp: keyframes must be in the order of their epochs, 2 comes after 3"),
        ("oven: {heat: 1, ramp: {0: 1, 3: 1, 3: 1}}", "x.yaml:1: oven.ramp: epoch 3 has two keyframes"),
        ("oven: {heat: 1, ramp: {1: 1}}", "x.yaml:1: oven.ramp: the first keyframe must be at epoch 0, it is at 1"),
        ("oven: {heat: 1, ramp: {0: hot}}", "x.yaml:1: oven.ramp: '0: hot' is not a keyframe; expected epoch: value, epoch: KIND value or interpolation: KIND, where KIND is linear or cosine or step or exponential or power N"),
        ("oven: {heat: 1, ramp: {0: 1, interpolation: cubic}}", "x.yaml:1: oven.ramp: interpolation: expected linear or cosine or step or exponential or power N, got 'cubic'"),
        ("oven: {heat: 1, ramp: {0: 1, interpolation: step, interpolation: step}}", "x.yaml:1: oven.ramp: interpolation is given twice"),
        ("oven: 3", "x.yaml:1: expected a table of settings"),
        ("- oven", "x.yaml:1: expected a table of settings"),
        ("oven: {minutes: 3}", "oven.heat is missing; pass --oven.heat=VALUE"),
        ("cook: nobody\noven:\n  heat: 3\n  fan: 1\n", "x.yaml:4: oven.fan: needs a cook"),
        ("oven: {heat: 1\ncook: Ada\n", "x.yaml:2: not YAML: expected ',' or '}', but got ':'"),
        ("oven:\n\theat: 1\n", "x.yaml:2: not YAML: found character '\\t' that cannot start any token"),
        ("a: 1\n---\nb: 1\n", "x.yaml:2: not YAML: but found another document"),
        ("a: \x00\n", "x.yaml: not a YAML text file"),
        ("oven:\n  heat: |\n    1\n    2\n", "x.yaml:2: expected text of one line without control characters"),
        ('cook: Ada\n"oven\\nheat": 1', "x.yaml:2: expected text of one line without control characters"),
        ("cook: Ada\n? [a, b]\n: 1", "x.yaml:2: expected a word as a key, got a list or a table"),
        ("cook: &x [1]\n*x : 2", "x.yaml:2: expected a word as a key, got a list or a table"),
        ("cook: Ada\noven: !!python/object:os.system {}", "x.yaml:2: expected no tags, got 'tag:yaml.org,2002:python/object:os.system'"),
        ("cook: !mine Ada", "x.yaml:1: expected no tags, got '!mine'"),
        ("[" * 2000, "x.yaml:1: is nested deeper than settings are"),
        ("cook: &a {b: 1}\noven: {<<: *a}", "x.yaml:2: expected no merged tables (<<)"),
        ("cook: [&a [1], &b [*a, *a], &c [*b, *b]]", "x.yaml:1: cook: expected a string or null, got a list"),
    ],
)  # fmt: skip
def test_errors_of_a_file_name_file_line_and_key(tmp_path: Path, text: str, message: str) -> None:
    assert error_of_yaml(tmp_path, text) == message


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--oven.hat=1"], "command line: --oven.hat is not a setting; did you mean --oven.heat?"),
        (["--oven.cook=Ada"], "command line: --oven.cook is not a setting; did you mean --cook?"),
        (["--refrigerator.minuts=1"], "command line: --refrigerator.minuts is not a setting; did you mean --oven.minutes?"),
        (["--heat=1"], "command line: --heat is not a setting; did you mean --oven.heat?"),
        (["--remarks=a"], "command line: --remarks is not a setting; --help lists the settings"),
        (["--oven.heat=hot"], "command line: --oven.heat: expected a number above 0 and at most 300, got 'hot'"),
        (["--oven.heat=-1"], "command line: --oven.heat: expected a number above 0 and at most 300, got -1"),
        (["--oven.heat", "-1"], "command line: --oven.heat: expected a number above 0 and at most 300, got -1"),
        (["--oven.heat"], "command line: --oven.heat: has no value; write --oven.heat=VALUE"),
        (["--oven.heat", "--cook=Ada"], "command line: --oven.heat: has no value; write --oven.heat=VALUE"),
        (["--oven.heat=1", "--oven.heat=1"], "command line: --oven.heat: is given twice"),
        (["oven.heat=1"], "command line: 'oven.heat=1' is not a setting; write --section.key=value"),
        (["--oven.heat=1\n2"], "command line: '--oven.heat=1\\n2' holds a line break or a control character"),
        (["--oven\nheat", "1"], "command line: '--oven\\nheat' holds a line break or a control character"),
        (["--oven.heat=1", "--oven.ramp={0: !!int 1}"], "command line: --oven.ramp: expected no tags, got 'tag:yaml.org,2002:int'"),
        (["-v"], "command line: '-v' is not a setting; write --section.key=value"),
        (["--oven.heat=1", "--oven.ramp={0: 1"], "command line: --oven.ramp: not YAML: expected ',' or '}', but got '<stream end>'"),
        (["--oven.heat=1", "--oven.ramp={0: \udcff}"], "command line: --oven.ramp: not a YAML text file"),
        (["--oven.heat=1", "--oven.ramp=[1]"], "command line: --oven.ramp: expected a table of keyframes {epoch: value, ...}, got a list"),
        (["--oven.heat=1", "--oven.window=0,1"], "command line: --oven.window: expected a list of two numbers at least 0, got '0,1'"),
        (["--oven.heat=1", "--oven.fan=on"], "command line: --oven.fan: expected true or false, got 'on'"),
        ([], "oven.heat is missing; pass --oven.heat=VALUE"),
        (["--oven.heat=1", "--oven.fan=1", "--cook=nobody"], "command line: --oven.fan: needs a cook"),
    ],
)  # fmt: skip
def test_errors_of_the_command_line_name_the_key(argv: list[str], message: str) -> None:
    assert error_of(*argv) == message


def test_another_programs_names_are_explained(tmp_path: Path) -> None:
    text = "stove:\n  flame: 3\n"
    message = "stove.flame is not a setting here; write oven.heat"
    assert error_of_yaml(tmp_path, text) == f"x.yaml:2: {message}"
    with pytest.raises(UserError, match=f"^command line: --{message}$"):
        reader.from_arguments(Kitchen, {"stove.flame": ["3"]})


def test_a_file_of_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    text = "cook: Ada\noven: {heat: 1}"
    path.write_text(text, encoding="utf-16")  # as PowerShell's > writes it
    with pytest.raises(UserError, match=r"x\.yaml: is not UTF-8 text; save it as UTF-8$"):
        reader.from_file(Kitchen, str(path))
    path.write_text(text, encoding="utf-8-sig")  # as Windows' Notepad does
    assert reader.from_file(Kitchen, str(path))["cook"].value == "Ada"


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x.yaml: cannot be read \(No such file or directory\)"):
        reader.from_file(Kitchen, str(tmp_path / "x.yaml"))
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        reader.from_file(Kitchen, str(tmp_path))


# --------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("name", ["", "null", "12", "true", "1e-4", "a: b #c", "'", '"', "ü", "~"])
def test_what_is_written_reads_back_equal(tmp_path: Path, name: str) -> None:
    kitchen = Kitchen(
        cook=name or None,
        oven=Oven(
            heat=1e-05,
            name=name,
            window=(0.1, 1 / 3),
            rack=2,
            ramp=Keyframes({0: 1e-7, 0.5: 3, 88: 0}, "step"),
        ),
    )
    text = declaration.to_yaml(kitchen)
    assert from_yaml(tmp_path, text) == kitchen
    assert text.index("heat") < text.index("fan") < text.index("cook")  # as declared


def test_help_prints_every_setting_and_exits_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command_line.read(Kitchen, ["--help"], usage="usage: bake")
    assert not stopped.value.code
    page = capsys.readouterr().out
    assert page.startswith("usage: bake\n")
    assert "  --oven.heat  (number above 0 and at most 300; required)\n      Degrees.\n" in page
    assert "  --oven.minutes  (integer; 10)\n      How long. Counted from when it is hot.\n" in page
    assert all(f"  --{key}  (" in page for key in declaration.declared(Kitchen))


def test_the_reference_is_a_table_of_every_setting() -> None:
    rows = reference.table(Kitchen).splitlines()
    assert rows[2] == "| `oven.heat` | number above 0 and at most 300 | required | Degrees. |"
    assert "| `oven.fan` | true or false | false | Whether it blows. |" in rows
    assert (
        "| `oven.window` | list of two numbers at least 0 | [0, 0.333333] | From and to. |" in rows
    )
    assert "| `cook` | string or null | null | Who. |" in rows
    assert [row.split("`")[1] for row in rows[2:]] == list(declaration.declared(Kitchen))
