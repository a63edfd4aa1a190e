"""The configuration: what fits together, what a changed batch size changes, what is never read."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ffcv_r50.config import declaration, reader, settings
from ffcv_r50.config.settings import Config, Training
from ffcv_r50.errors import UserError
from ffcv_r50.keyframes import Keyframes, Varying
from ffcv_r50.logs.sinks import SINKS
from ffcv_r50.optim import OPTIMIZERS, SGD, AdamW
from ffcv_r50.registry import Registry
from ffcv_r50.training.averages import AVERAGES
from ffcv_r50.training.transforms import TRANSFORMS

RECIPE = """\
model: {arch: resnet18}
training:
  epochs: 16
  batch_size: 4096
  norm_batch_size: 512
schedule:
  lr: {0: 0.00017, 2: 1.7, 16: 0}
  resolution: {0: 160, 11: 160, 13: 192, 16: 192}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "x.yaml"
    path.write_text(RECIPE)
    return path


def load(recipe: Path, *argv: str) -> Config:
    return settings.load([f"--config={recipe}", *argv], needs_data=False)


def error_of(recipe: Path, *argv: str, needs_data: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        settings.load([f"--config={recipe}", *argv], needs_data=needs_data)
    return str(caught.value).replace(f"{recipe.parent}/", "")


def test_multipliers_read_back(recipe: Path) -> None:
    given = "--training.lr_multipliers={fc: 10, layer1.0: {0: 0, 2: 0, 4: cosine 1}}"
    config = load(recipe, given, "--training.layer_decay={0: 0.5, 16: 1}")
    assert config.training.lr_multipliers == {
        "fc": Varying(10),
        "layer1.0": Varying({0: 0, 2: 0, 4: "cosine 1"}),
    }
    written = reader.from_yaml(Config, config.to_yaml(), "y.yaml")
    assert declaration.build(Config, written) == config
    assert set(config.varying) == {
        ("training.lr_multipliers", "layer1.0"),
        ("training.layer_decay", ""),
    }


# ---------------------------------------------------------------------------- what fits together


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--training.batch_size=1000", "x.yaml:5: training.norm_batch_size: 512 does not divide training.batch_size 1000; pass --training.norm_batch_size=500 or a multiple of 512 as training.batch_size"),
        ("--training.batch_size=256", "x.yaml:5: training.norm_batch_size: 512 does not divide training.batch_size 256; pass --training.norm_batch_size=256"),
        ("--training.norm_batch_size=500", "command line: --training.norm_batch_size: 500 does not divide training.batch_size 4096; pass --training.norm_batch_size=256 or a multiple of 500 as training.batch_size"),
        ("--training.epochs=12", "x.yaml:7: schedule.lr: has a keyframe at epoch 16, after the end of the run (training.epochs is 12)"),
        ("--training.lr_multipliers={fc: -1}", "command line: --training.lr_multipliers: fc: expected a number or keyframes {epoch: number, ...}, numbers at least 0, got -1"),
        ("--training.lr_multipliers={fc: {0: 1, 2: x}}", "command line: --training.lr_multipliers: fc: '2: x' is not a keyframe; expected epoch: value, epoch: KIND value or interpolation: KIND, where KIND is linear or cosine or step or exponential or power N"),
        ("--training.lr_multipliers={fc: 1, fc: 2}", "command line: --training.lr_multipliers: fc is given twice"),
        ("--training.lr_multipliers=0.1", "command line: --training.lr_multipliers: expected a table {name: value} of a number or keyframes {epoch: number, ...}, numbers at least 0, got '0.1'"),
        ("--training.lr_multipliers={fc: {0: 1, 17: 2}}", "command line: --training.lr_multipliers: fc has a keyframe at epoch 17, after the end of the run (training.epochs is 16)"),
        ("--training.layer_decay={0: 1, 17: 0.5}", "command line: --training.layer_decay: has a keyframe at epoch 17, after the end of the run (training.epochs is 16)"),
        ("--training.layer_decay=0", "command line: --training.layer_decay: expected a number or keyframes {epoch: number, ...}, numbers above 0 and at most 1, got 0"),
        ("--model.weights=ResNet18_Weights.IMAGENET1K_V9", "command line: --model.weights: torchvision has no weights 'ResNet18_Weights.IMAGENET1K_V9'; did you mean ResNet18_Weights.IMAGENET1K_V1?"),
        ("--model.arch=timm/resnet18dd", "command line: --model.arch: timm has no network 'resnet18dd'; did you mean timm/resnet18d?"),
        ("--training.epochs=24", "x.yaml:7: schedule.lr: is 0 from epoch 16 to the end of the run (training.epochs is 24)"),
        ("--schedule.lr={0: -1}", "command line: --schedule.lr: expected rates of at least 0, got -1"),
        ("--schedule.resolution={0: 160, 20: 192}", "command line: --schedule.resolution: has a keyframe at epoch 20, after the end of the run (training.epochs is 16)"),
        ("--schedule.lr={0: 0, 16: 0}", "command line: --schedule.lr: is 0 throughout; nothing would be trained"),
        ("--schedule.lr={0: 1e999}", "command line: --schedule.lr: '0: 1e999' is not a keyframe; expected epoch: value, epoch: KIND value or interpolation: KIND, where KIND is linear or cosine or step or exponential or power N"),
        ("--schedule.resolution={0: 150}", "command line: --schedule.resolution: expected multiples of 8 from 32 to 4096, got 150"),
        ("--schedule.resolution={0: 0}", "command line: --schedule.resolution: expected multiples of 8 from 32 to 4096, got 0"),
        ("--schedule.resolution={0: 100000000000000}", "command line: --schedule.resolution: expected multiples of 8 from 32 to 4096, got 100000000000000"),
        ("--checkpoint.every=1e999 minutes", "command line: --checkpoint.every: expected '500 steps' or '10 minutes', got '1e999 minutes'"),
        ("--schedule.resolution={0: 160, 14: 160, 16: 224}", "command line: --schedule.resolution: the ramp never reaches 224: the epochs train at 160, 192; move the keyframe to an earlier epoch or remove it"),
        ("--schedule.resolution={0: 128, 4: 128, 4.5: 224, 5: 128}", "command line: --schedule.resolution: the ramp never reaches 224: the epochs train at 128; move the keyframe to an earlier epoch or remove it"),
        ("--schedule.momentum={0: 0.9, 16: 1}", "command line: --schedule.momentum: expected a number at least 0 and below 1, got 1"),
        ("--schedule.weight_decay={0: -1e-4}", "command line: --schedule.weight_decay: expected a number at least 0, got -0.0001"),
        ("--schedule.label_smoothing={0: 0, 20: 0.1}", "command line: --schedule.label_smoothing: has a keyframe at epoch 20, after the end of the run (training.epochs is 16)"),
        ("--schedule.momentum={0: 0.9, 8: 0} --optimizer.nesterov=1", "command line: --optimizer.nesterov: needs schedule.momentum above 0"),
        ("--schedule.momentum=0.9", "command line: --schedule.momentum: expected a table of keyframes {epoch: value, ...} or null, got '0.9'"),
        ("--schedule.seed={0: 1}", "command line: --schedule.seed is not a setting; did you mean --training.seed?"),
        ("--data.crop_scale=[1, 0.5]", "command line: --data.crop_scale: [1, 0.5] is not [lowest, highest]"),
        ("--data.crop_ratio=[2, 0.5]", "command line: --data.crop_ratio: [2, 0.5] is not [lowest, highest]"),
        ("--training.nesterov=1 --training.momentum=0", "command line: --training.nesterov: needs training.momentum above 0"),
        ("--optimizer.nesterov=1 --training.momentum=0", "command line: --optimizer.nesterov: needs training.momentum above 0"),
        ("--optimizer.name=adamv", "command line: --optimizer.name: there is no optimizer 'adamv'; did you mean adam?"),
        ("--optimizer.beta2=0.9", "command line: --optimizer.beta2 is not an option of sgd, which has nesterov, decoupled"),
        ("--optimizer.name=adamw --optimizer.nesterov=1", "command line: --optimizer.nesterov is not an option of adamw, which has beta2, eps"),
        ("--sam.rho={0: 0, 20: 0.05}", "command line: --sam.rho: has a keyframe at epoch 20, after the end of the run (training.epochs is 16)"),
        ("--sam.rho={0: 0.1, 2: -0.05}", "command line: --sam.rho: expected a number or keyframes {epoch: number, ...}, numbers at least 0, got a table"),
        ("--sam.interval=0", "command line: --sam.interval: expected an integer at least 1, got 0"),
        ("--clipping.name=norms", "command line: --clipping.name: there is no clipping 'norms'; did you mean norm?"),
        ("--clipping.name=norm", "clipping.at is missing; pass --clipping.at=VALUE"),
        ("--clipping.name=norm --clipping.at=0", "command line: --clipping.at: expected a number above 0, got 0"),
        ("--clipping.at=1", "command line: --clipping.at is not an option of none, which has none"),
        ("--optimizer.name=lars --optimizer.nesterov=1 --training.momentum=0", "command line: --optimizer.nesterov: needs training.momentum above 0"),
        ("--loss.name=bce --loss.target_threshold=1", "command line: --loss.target_threshold: expected a number at least 0 and below 1 or null, got 1"),
        ("--loss.name=bce --loss.target_threshold=0.95 --training.label_smoothing=0.1", "command line: --loss.target_threshold: 0.95 makes every target 0: the largest of label smoothing 0.1 is at most 0.95; choose a lower one"),
        ("--loss.name=bce --loss.target_threshold=0.95 --schedule.label_smoothing={0: 0, 8: 0.2, 16: 0}", "command line: --loss.target_threshold: 0.95 makes every target 0: the largest of label smoothing 0.2 is at most 0.9; choose a lower one"),
        ("--averages=[{swa: {start: 15.5}}]", "command line: --averages: swa has nothing before epoch 16.5, after the end of the run (training.epochs is 16)"),
        ("--validation.averages_every=0", "command line: --validation.averages_every: expected an integer at least 1, got 0"),
        ("--augment=[{erasing: {probability: 1.5}}]", "command line: --augment: erasing.probability: expected a number or keyframes {epoch: number, ...}, numbers at least 0 and at most 1, got 1.5"),
        ("--augment=[{colout: {rows: 1}}]", "command line: --augment: colout.rows: expected a number at least 0 and below 1, got 1"),
        ("--checkpoint=x.pt", "command line: --checkpoint.file: is for --training.eval_only=1; a run continues from its logging.folder by itself"),
        ("--validation.sets={a: a.beton}", "command line: --validation.sets: is for --training.eval_only=1, which evaluates the --checkpoint of a finished run"),
        ("--validation.sets={val: a.beton} --training.eval_only=1", "command line: --validation.sets: val is what the table calls data.val_dataset; choose another name"),
        ("--validation.sets=a.beton", "command line: --validation.sets: expected a table {name: value} of a string, got 'a.beton'"),
        ("--model.arch=resnet51", "command line: --model.arch: torchvision has no classification model 'resnet51'; did you mean resnet50?"),
        ("--model.arch=fcn_resnet50", "command line: --model.arch: torchvision has no classification model 'fcn_resnet50'; did you mean resnet50?"),
        ("--training.batchsize=8", "command line: --training.batchsize is not a setting; did you mean --training.batch_size?"),
        ("--validation.tta=flips", "command line: --validation.tta: expected none or flip, got 'flips'; did you mean flip?"),
        ("--training.epochs=0", "command line: --training.epochs: expected an integer at least 1 and at most 10000, got 0"),
        ("--notices=x", "command line: --notices is not a setting; --help lists the settings"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit(recipe: Path, argv: str, message: str) -> None:
    words = re.split(r" (?=--)", argv)
    assert error_of(recipe, *words) == message


@pytest.mark.parametrize(
    "key",
    [
        *("training.epochs", "training.batch_size", "data.num_workers", "dist.timeout_seconds"),
        *("validation.resolution", "validation.batch_size"),
    ],
)
def test_numbers_that_would_take_for_ever_are_refused(recipe: Path, key: str) -> None:
    huge = "1" + "0" * 400
    assert re.search(
        rf"{key}: expected .* at most \d+, got {huge}$", error_of(recipe, f"--{key}={huge}")
    )


def test_resume_allow_may_have_spaces(recipe: Path) -> None:
    allow = "--resume.allow= training.epochs, schedule.lr,"
    assert load(recipe, allow).resume.allow == "training.epochs,schedule.lr"
    assert error_of(recipe, "--resume.allow=training.epochs, x") == (
        "command line: --resume.allow: x is not a setting"
    )


def test_the_optimizer_is_chosen_by_name(recipe: Path) -> None:
    assert load(recipe).optimizer == SGD()
    assert load(recipe, "--optimizer.name=adamw", "--optimizer.eps=1e-6").optimizer == AdamW(
        eps=1e-6
    )
    recipe.write_text(RECIPE + "optimizer: {name: adamw, beta2: 0.95}\n")
    assert load(recipe, "--optimizer.eps=1e-6").optimizer == AdamW(beta2=0.95, eps=1e-6)
    assert load(recipe, "--optimizer.name=sgd").optimizer == SGD()
    assert load(recipe, "--resume.allow=optimizer.name,optimizer.nesterov").resume.allow


def test_nesterov_where_it_was_before(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("  epochs: 16", "  epochs: 16\n  nesterov: true"))
    assert load(recipe).optimizer == SGD(nesterov=True)
    assert error_of(recipe, "--optimizer.nesterov=maybe").endswith("got 'maybe'")
    recipe.write_text(recipe.read_text() + "optimizer: {name: adamw}\n")
    assert error_of(recipe) == (
        "x.yaml:4: training.nesterov is not an option of adamw, which has beta2, eps"
    )


def test_staging_that_a_file_asks_for_can_be_switched_off(recipe: Path) -> None:
    recipe.write_text(RECIPE + "data: {stage_dir: /scratch}\n")
    assert load(recipe).data.stage_dir == "/scratch"
    assert load(recipe, "--data.stage_dir=").data.stage_dir == ""


def test_a_ramp_in_the_file_that_is_never_reached_is_named_with_its_line(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("13: 192, 16: 192", "16: 256"))
    assert error_of(recipe) == (
        "x.yaml:8: schedule.resolution: the ramp never reaches 256: the epochs train at 160, 192, "
        "224; move the keyframe to an earlier epoch or remove it"
    )


def test_an_unknown_architecture_in_the_file_is_named_with_its_line(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("resnet18", "resnet-18"))
    assert error_of(recipe) == (
        "x.yaml:1: model.arch: torchvision has no classification model 'resnet-18'; "
        "did you mean resnet18?"
    )


def test_the_same_checks_hold_for_a_config_made_by_hand(recipe: Path) -> None:
    good = load(recipe)
    with pytest.raises(UserError, match=r"^training.norm_batch_size: 512 does not divide"):
        Config(**dict(good) | {"training": Training(**dict(good.training) | {"batch_size": 100})})


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "data.train_dataset, data.val_dataset, logging.folder are missing; pass --data.train_dataset=PATH"),
        (["--data.train_dataset=a", "--data.val_dataset=b"], "logging.folder is missing; pass --logging.folder=PATH"),
        (["--training.eval_only=1"], "data.val_dataset, checkpoint are missing; pass --data.val_dataset=PATH"),
        (["--training.eval_only=1", "--data.val_dataset=b"], "checkpoint is missing; pass --checkpoint=PATH"),
    ],
)  # fmt: skip
def test_the_paths_that_a_run_needs(recipe: Path, argv: list[str], message: str) -> None:
    assert error_of(recipe, *argv, needs_data=True) == message


def test_evaluation_needs_no_training_set(recipe: Path) -> None:
    argv = ["--training.eval_only=1", "--checkpoint=x.pt", "--data.val_dataset=b"]
    loaded = settings.load([f"--config={recipe}", *argv])
    assert (loaded.training.eval_only, loaded.checkpoint.file) == (True, "x.pt")


def test_a_run_without_a_recipe_is_told_to_name_one() -> None:
    with pytest.raises(UserError) as caught:
        settings.load(["--training.epochs=3"])
    assert str(caught.value) == (
        "training.batch_size, schedule.lr, schedule.resolution are missing; name a recipe: "
        "--config rcp/rn50_16ep.yaml"
    )


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no.yaml: cannot be read \(No such file or directory\)"):
        load(tmp_path / "no.yaml")


# ------------------------------------------------------------- the recipe and the command line


def test_another_batch_size_scales_the_learning_rate_and_says_so(recipe: Path) -> None:
    scaled = load(recipe, "--training.batch_size=1024")
    assert scaled.training.batch_size == 1024
    assert scaled.schedule.lr == Keyframes({0: 0.00017 / 4, 2: 1.7 / 4, 16: 0})
    assert scaled.notices == (
        "training.batch_size 4096 -> 1024: learning rate scaled by 0.25 (peak 1.7 -> 0.425)",
    )


def test_the_interpolation_survives_the_scaling(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("16: 0}", "16: 0, interpolation: cosine}"))
    scaled = load(recipe, "--training.batch_size=8192")
    assert scaled.schedule.lr.interpolation == "cosine"
    assert max(scaled.schedule.lr.values) == 3.4


def test_the_kinds_of_segments_survive_the_scaling(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("16: 0}", "8: exponential 0.1, 16: cosine 0}"))
    scaled = load(recipe, "--training.batch_size=1024")
    assert scaled.schedule.lr == Keyframes(
        {0: 0.00017 / 4, 2: 1.7 / 4, 8: "exponential 0.025", 16: "cosine 0"}
    )


@pytest.mark.parametrize("size", ["4096", "4096 "])
def test_the_recipes_own_batch_size_changes_nothing(recipe: Path, size: str) -> None:
    same = load(recipe, f"--training.batch_size={size.strip()}")
    assert same == load(recipe)
    assert same.notices == ()


def test_a_learning_rate_on_the_command_line_is_taken_as_it_is(recipe: Path) -> None:
    chosen = load(recipe, "--training.batch_size=1024", "--schedule.lr={0: 0.3}")
    assert chosen.schedule.lr == Keyframes({0: 0.3})
    assert chosen.notices == ()


def test_the_batch_size_in_the_file_scales_nothing(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("4096", "1024"))
    assert load(recipe).schedule.lr == Keyframes({0: 0.00017, 2: 1.7, 16: 0})


NOTICE = "batch-norm sees other batches than in the recipe; this run departs from it"


def test_another_norm_batch_size_departs_from_the_recipe_and_says_so(recipe: Path) -> None:
    departed = load(recipe, "--training.norm_batch_size=256")
    assert departed.norm_batch_size == 256
    assert departed.notices == (f"training.norm_batch_size 512 -> 256: {NOTICE}",)
    assert load(recipe, "--training.norm_batch_size=512").notices == ()


def test_without_norm_batch_size_it_follows_the_batch_and_says_so(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("  norm_batch_size: 512\n", ""))
    assert load(recipe).norm_batch_size == 4096
    departed = load(recipe, "--training.batch_size=2048")
    assert departed.norm_batch_size == 2048
    assert departed.notices == (
        "training.batch_size 4096 -> 2048: learning rate scaled by 0.5 (peak 1.7 -> 0.85)",
        f"training.norm_batch_size 4096 -> 2048: {NOTICE}",
    )


def test_environment_variables_are_never_read(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load(recipe)
    for key in declaration.declared(Config):
        for name in (key, key.upper(), key.rpartition(".")[2], key.replace(".", "_").upper()):
            monkeypatch.setenv(name, "1")
    assert load(recipe) == before


# ---------------------------------------------------------------------------- writing, reference


def test_what_is_written_loads_alone_to_an_equal_config(recipe: Path, tmp_path: Path) -> None:
    every = load(
        recipe,
        "--model.blurpool=1",
        "--data.train_dataset=/data/a b: c#d.beton",
        "--data.val_dataset=123",
        "--data.crop_scale=[0.25, 1e-0]",
        "--data.bad_images=gray",
        "--training.batch_size=1536",
        "--training.weight_decay=5e-5",
        "--training.precision=bf16",
        "--training.eval_only=1",
        "--schedule.resolution={0: 128, 0.5: 160, 16: 160, interpolation: step}",
        "--schedule.momentum={0: 0.95, 5: cosine 0.85, 16: power 2 0.9}",
        "--optimizer.name=adamw",
        "--optimizer.eps=1e-6",
        "--validation.tta=flip",
        "--validation.sets={v2: /data/a b.beton, '5': 'x: y.json'}",
        "--data.mean=[0.5, 0.25, 1]",
        "--logging.folder=runs/null",
        "--dist.timeout_seconds=7",
        "--checkpoint=x.pt",
    )
    for original in (load(recipe), every):
        written = tmp_path / "config.yaml"
        written.write_text(original.to_yaml())
        again = load(written)
        assert again == original
        assert again.to_yaml() == original.to_yaml()
        assert again.notices == ()
    assert every.notices


def test_the_written_file_names_every_setting(recipe: Path, tmp_path: Path) -> None:
    written = tmp_path / "config.yaml"
    for name in OPTIMIZERS.names:
        written.write_text(load(recipe, f"--optimizer.name={name}").to_yaml())
        known = declaration.declared(Config, {"optimizer.name": name})
        assert set(reader.from_file(Config, str(written))) == set(known)


def test_the_reference_documents_every_setting_in_a_sentence() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "ffcv_r50.config"],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line.strip("| ").split(" | ") for line in run.stdout.splitlines()[2:]]
    keys = [row[0].strip("`") for row in rows]
    # Several things that are chosen by name may have an option of one name.
    assert [key for key in dict.fromkeys(keys) if key in declaration.declared(Config)] == list(
        declaration.declared(Config)
    )
    # The options of every optimizer, too; those of things in lists stand behind their list.
    single = [key for key in keys if ": " not in key]
    assert set(single) == declaration.keys(Config)
    listed: dict[str, Registry[Any]] = {
        "augment": TRANSFORMS,
        "averages": AVERAGES,
        "logging.sinks": SINKS,
    }
    assert {key for key in keys if ": " in key} == {
        f"{key}: {name}.{option}"
        for key, registry in listed.items()
        for name in registry.names
        for option in registry[name].model_fields
    }
    for row in rows:
        assert len(row) == 4, row
        assert row[3].startswith("`") or row[3][0].isupper(), row
        assert row[3].endswith("."), row


def test_help_lists_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        settings.load(["--help"])
    assert not stopped.value.code
    page = capsys.readouterr().out
    assert page.startswith("usage: train_imagenet.py --config FILE")
    assert all(f"--{key} " in page for key in declaration.declared(Config))


# -------------------------------------------------------------------------- ffcv-imagenet's names


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("--lr.lr=1.7", "write the learning rate as keyframes: schedule.lr: {0: 0, 2: 1.7, 16: 0}"),
        ("--lr.lr_peak_epoch=2", "the peak is a keyframe: schedule.lr: {0: 0, 2: 1.7, 16: 0}"),
        ("--resolution.min_res=160", "write schedule.resolution: {0: 160, 11: 160, 13: 192}"),
        ("--validation.lr_tta=1", "write validation.tta: flip"),
        ("--training.use_blurpool=1", "write model.blurpool: true"),
        ("--training.blurpool=1", "write model.blurpool: true"),
        ("--training.distributed=1", "start with torchrun to train on several GPUs"),
        ("--dist.world_size=8", "the number of processes comes from torchrun or SLURM"),
        ("--config-file=x", "write --config FILE"),
    ],
)
def test_ffcv_imagenets_names_point_to_ours(recipe: Path, argument: str, says: str) -> None:
    key = argument.partition("=")[0].replace("-file", "_file")
    assert error_of(recipe, argument) == f"command line: {key} is not a setting here; {says}"


def test_a_file_of_ffcv_imagenet_is_answered_by_its_first_foreign_key(recipe: Path) -> None:
    recipe.write_text("data:\n  num_workers: 12\n  in_memory: 1\nlr:\n  lr: 1.7\n")
    assert error_of(recipe) == (
        "x.yaml:3: data.in_memory is not a setting here; files are mapped into memory; "
        "data.order: quasi_random is for datasets larger than memory"
    )


def test_what_the_hints_recommend_is_accepted(recipe: Path) -> None:
    load(recipe, "--schedule.resolution={0: 160, 11: 160, 13: 192}", "--validation.tta=flip")
    load(recipe, "--schedule.lr={0: 0, 2: 1.7, 16: 0}", "--model.blurpool=true")
    load(recipe, "--schedule.lr={0: 0.1, 30: 0.01, interpolation: step}", "--training.epochs=90")
    assert not set(settings.FFCV_IMAGENET_NAMES) & set(declaration.declared(Config))
