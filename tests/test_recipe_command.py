"""Recipes as commands: errors, files and log lines."""

import errno
import json
import os
import re
import runpy
import shutil
import signal
import sys
from pathlib import Path

import pytest
from make_corpus import make_corpus
from ruamel.yaml import YAML

from speechbrain_focalcodec.training.checkpointing import AtomicCheckpointer
from speechbrain_focalcodec.training.codec_brain import CodecBrain
from speechbrain_focalcodec.training.recipe import changed_keys, experiment
from speechbrain_focalcodec.utils.files import atomic_write_text

ROOT = Path(__file__).parents[1]
SCRIPT = str(ROOT / "recipes" / "Folder" / "train.py")
YAML_FILE = "hparams/train/mini_quantizer.yaml"
OFFLINE = "tests/parity/offline_50hz"
OTHER = {
    "model": "!include:../../tests/recipes/models/offline_12_5hz.yaml",
    "encoder_source": "tests/parity/offline_12_5hz",
}
FILES = (
    "config.json env.log hyperparams.yaml log.txt metrics.jsonl save train.py "
    "train_log.txt"
).split()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "data"
    splits = ["train-tiny", "dev-tiny"]
    return make_corpus("Folder", folder, splits, 2, 2, duration=0.3)


def run(corpus, output, **given):
    """Run a recipe; `given` options override those below."""
    options = {
        "data_folder": corpus,
        "output_folder": output,
        "model": "!include:../../tests/recipes/models/offline_50hz.yaml",
        "encoder_source": OFFLINE,
        "train_splits": "[train-tiny]",
        "valid_splits": "[dev-tiny]",
        "num_valid": 0,
        "batch_size": 2,
        "num_samples": 0,
        "train_data_options": "{segment_samples: 4000}",
        "number_of_epochs": 2,
        "total_steps": 4,
        "device": "cpu",
        "precision": "fp32",
        "log_interval": 1,
        **given,
    }
    flags = ["--noprogressbar"]
    for key, value in options.items():
        if value is not None:
            flags.append(f"--{key}" if value is True else f"--{key}={value}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [SCRIPT, YAML_FILE, *flags])
        runpy.run_path(SCRIPT, run_name="__main__")


def lines_of(output):
    """The splits and steps of metrics.jsonl, and the lines of the text."""
    text = (output / "metrics.jsonl").read_text()
    metrics = [json.loads(line) for line in text.splitlines()]
    return (
        [(line["split"], line["step"]) for line in metrics],
        (output / "train_log.txt").read_text().splitlines(),
    )


def read_all(output):
    """Files that a wrong command must not change."""
    return {
        path.name: path.read_bytes()
        for path in output.iterdir()
        if path.is_file()
    }


@pytest.fixture(autouse=True, scope="module")
def _in_the_repository():
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        # Asking pip takes longer than the training.
        describe = "speechbrain.utils.logger.get_environment_description"
        patch.setattr(describe, lambda: "Python and more")
        yield


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    """A run of two epochs, of two steps each."""
    output = tmp_path_factory.mktemp("runs") / "finished"
    run(corpus, output)
    return output


@pytest.fixture
def copy(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_run_logs_its_results_and_the_next_step(finished):
    log = (finished / "log.txt").read_text()
    # Before there was a log to write to.
    assert "train: 4 utterances, 0.00 h, 2 speakers" in log
    assert "valid: 4 utterances, 0.00 h, 2 speakers" in log
    # The YAML warms up for 200 steps.
    assert "total_steps is 4: it warms up for 0" in log
    export = f"focalcodec export my_model RUN_OF_THE_OTHER_STAGE {finished}"
    assert "a model needs a trained decoder too" in log
    assert f"{export} --encoder {OFFLINE}" in log
    assert 'FocalCodec.from_pretrained("my_model")' in log
    assert sorted(path.name for path in finished.iterdir()) == FILES
    written = YAML().load((finished / "hyperparams.yaml").read_text())
    assert written["output_folder"] == str(finished)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"btch_size": 3}, "no 'btch_size' to set; did you mean --batch_size"),
        ({"devise": "cpu"}, "did you mean --device?"),
        ({"batch_size": "many"}, "--batch_size=many must be a number"),
        ({"preload": "yes"}, "--preload=yes must be True or False"),
        ({"train_splits": "train-tiny"}, "a list, as in [train-tiny]"),
        ({"train_data_options": 3}, "must be a table"),
        ({"train_data_options": "{segment_samples: long}"}, "a number"),
        ({"train_splits": "[a"}, "--valid_splits=[dev-tiny] is no YAML"),
        ({"train_splits": "[train-tny]"}, "lacks train-tny; found: dev-tiny"),
        ({"train_data_options": "{segment: 3}"}, "argument 'segment'"),
        ({"data_folder": "nowhere"}, "nowhere does not exist"),
        ({"data_folder": None}, "add --data_folder=... to the command"),
        ({"start_from": "results/none"}, "results/none"),
        ({"batch_size": 0}, "batch_size should be a positive"),
        ({"device": "cudaa"}, "--device=cudaa: cannot be used here"),
        ({"debug_batches": "x"}, "--debug_batches: invalid int value: 'x'"),
        ({"num_valid": 2}, "num_valid=2 would hold utterances out"),
        ({"model": None}, "(compressor_config.hidden_dims: [32, "),
        ({"encoder_source": "null"}, "encoder_source: tests/parity/offl"),
        ({"lr_schedule": "!new:dict {a: 1}"}, "would lose !new:dict: write"),
        ({"num_valid": "{a: 1}"}, "--num_valid: is no table"),
        ({"modules": "{head: 3}"}, "(modules.head: nothing -> 3): use the"),
    ],
)
def test_a_wrong_command_is_one_line(corpus, finished, capsys, given, message):
    """It does not change the run that it would have resumed."""
    before = read_all(finished)
    with pytest.raises(SystemExit) as caught:
        run(corpus, finished, **given)
    assert caught.value.code == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert read_all(finished) == before


def test_a_checkpoint_of_another_model_is_refused(corpus, copy, capsys):
    """Though no YAML and no configuration is left to compare with."""
    (copy / "hyperparams.yaml").unlink()
    (copy / "config.json").unlink()
    before = read_all(copy)
    with pytest.raises(SystemExit) as caught:
        run(corpus, copy, **OTHER)
    assert caught.value.code == 2
    assert "does not fit what is to be trained" in capsys.readouterr().err
    assert read_all(copy) == before


def test_a_debug_run_has_a_folder_of_its_own(corpus, copy):
    before = read_all(copy)
    run(corpus, copy, debug=True, debug_epochs=1, debug_batches=1, **OTHER)
    assert read_all(copy) == before
    debug = copy.with_name("run_debug")
    config = json.loads((debug / "config.json").read_text())
    assert config != json.loads(before["config.json"])
    assert "keeps no weights" in (debug / "log.txt").read_text()


def test_changed_hyperparameters_are_logged(corpus, copy):
    *lines, test = lines_of(copy)[0]
    run(corpus, copy, lr=0.5, number_of_epochs=3, total_steps=6)
    log = (copy / "log.txt").read_text()
    _, _, told = log.partition("other values than before: ")
    assert "lr: 0.001 -> 0.5; number_of_epochs: 2 -> 3; " in told
    assert "opt_class.lr" not in told  # follows lr
    assert lines_of(copy)[0] == [
        *lines,
        *[("train", 5), ("train", 6), ("train_epoch", 6), ("valid", 6)],
        test,  # the second epoch stays the best
    ]


def test_repeating_a_finished_run_logs_nothing_twice(corpus, copy):
    before = lines_of(copy)
    run(corpus, copy)
    assert lines_of(copy) == before
    assert "other values" not in (copy / "log.txt").read_text()


@pytest.mark.parametrize(
    "interval, steps", [(1, [1, 2, 3, 4]), (2, [2, 4]), (3, [3, 4])]
)
def test_a_run_killed_before_an_epochs_checkpoint(
    corpus, finished, tmp_path, monkeypatch, interval, steps
):
    """Its last checkpoint is of the epoch's last step."""
    options = {"ckpt_interval_steps": 2, "log_interval": interval}
    save = AtomicCheckpointer.save_checkpoint

    def stop(self, *args, **kwargs):
        if kwargs.get("end_of_epoch", True):
            raise KeyboardInterrupt
        return save(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(AtomicCheckpointer, "save_checkpoint", stop)
        with pytest.raises(SystemExit) as caught:
            run(corpus, tmp_path / "run", **options)
    assert caught.value.code == 130
    assert len(lines_of(tmp_path / "run")[1]) == 1
    run(corpus, tmp_path / "run", **options)
    lines, text = lines_of(tmp_path / "run")
    assert text == lines_of(finished)[1]
    assert [step for split, step in lines if split == "train"] == steps
    assert [line for line in lines if line[0] != "train"] == [
        *[("train_epoch", 2), ("valid", 2), ("train_epoch", 4), ("valid", 4)],
        ("test", 4),
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_prints_how_to_resume(
    corpus, tmp_path, monkeypatch, capsys, number
):
    fit_batch = CodecBrain.fit_batch

    def stop(self, batch):
        if self.optimizer_step == 3:
            signal.raise_signal(number)
        return fit_batch(self, batch)

    monkeypatch.setattr(CodecBrain, "fit_batch", stop)
    with pytest.raises(SystemExit) as caught:
        run(corpus, tmp_path / "run")
    assert caught.value.code == 128 + number
    *_, line = capsys.readouterr().err.splitlines()
    [kept] = (tmp_path / "run" / "save").glob("CKPT*")
    assert line == f"stopped: {kept} is kept; the same command resumes from it"


def test_a_run_stopped_before_its_first_checkpoint(
    corpus, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(CodecBrain, "fit_batch", _interrupt)
    with pytest.raises(SystemExit):
        run(corpus, tmp_path / "run")
    assert "no checkpoint was written yet" in capsys.readouterr().err


def _interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["the system's", "torch's"])
def test_a_full_disk_is_named(corpus, tmp_path, monkeypatch, capsys, kind):
    if kind == "torch's":
        error = RuntimeError("basic_ios::clear: iostream error")
        full = shutil.disk_usage("/")._replace(free=0)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    else:
        error = OSError(errno.ENOSPC, "No space left on device")

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(AtomicCheckpointer, "save_checkpoint", fail)
    with pytest.raises(SystemExit) as caught:
        run(corpus, tmp_path / "run")
    assert caught.value.code == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"error: the disk of {tmp_path / 'run'}/save is full"
    )


def test_a_file_on_a_full_disk_is_named(tmp_path, monkeypatch):
    def fail(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"the disk is full.*a\.txt"):
        atomic_write_text(tmp_path / "a.txt", "text")
    assert list(tmp_path.iterdir()) == []


def test_a_defect_keeps_its_traceback(corpus, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(CodecBrain, "fit_batch", fail)
    with pytest.raises(SystemExit) as caught:
        run(corpus, tmp_path / "run")
    assert caught.value.code == 1
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "Traceback" in log and "ZeroDivisionError: by nothing" in log


def test_differences_of_two_yamls():
    old, new = map(
        YAML().load,
        (
            "a: &x {b: [1, 2], c: !new:dict {d: 1}}\ne: *x\nf: null\n"
            "n: [{m: 1}]",
            "a: {b: [1], c: !new:list {d: 1}}\nf: {}\nn: [{m: 2}]\ng: 1",
        ),
    )
    assert changed_keys(old, new) == {
        "a.b": "[1, 2] -> [1]",
        "a.c": "!new:dict -> !new:list",
        "n.0.m": "1 -> 2",
        "g": "nothing -> 1",
    }
    assert changed_keys(old, old) == {}
    # The order of keys is free.
    assert changed_keys(old, dict(sorted(old.items())[::-1])) == {}


@pytest.mark.parametrize(
    "text, options, message",
    [
        ("a: [1", [], "bad.yaml cannot be read"),
        ("- 1", [], "bad.yaml: is no table"),
        ("a: !ref <b>", [], 'bad.yaml: .*reference "b" is not valid'),
        ("a: !PLACEHOLDER", [], "bad.yaml: add --a=... to the command"),
        ("key: 1", ["--other=1"], "has no 'other' to set; its keys: key"),
        ("a: !include:none.yaml", [], "bad.yaml: .*none.yaml"),
        (
            "key: 1",
            ["--key=2", "--key=3"],
            "--key=3 is no YAML: found duplicate key",
        ),
    ],
)
def test_invalid_yamls(tmp_path, capsys, text, options, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit) as caught, experiment() as run_:
        run_.parse_arguments([str(path), *options])
    assert caught.value.code == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
