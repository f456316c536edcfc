"""The evaluation at the end of a training."""

import csv
import json
from pathlib import Path

import pytest
import torch
from make_corpus import make_corpus
from own_script import fit_and_evaluate
from test_data_training import make_hparams
from test_training import CONFIG

from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.data.corpora import prepare_folder
from speechbrain_focalcodec.errors import (
    CheckpointError,
    ConfigError,
    DataError,
)
from speechbrain_focalcodec.metrics import registry
from speechbrain_focalcodec.metrics.base import Column, Metric
from speechbrain_focalcodec.training.codec_brain import CodecBrain
from speechbrain_focalcodec.training.entry import prepare_manifests
from speechbrain_focalcodec.training.evaluation import FinalEvaluation
from speechbrain_focalcodec.training.export import export_runs
from speechbrain_focalcodec.training.run_log import read_metrics

ROOT = Path(__file__).parents[1]
CAUSAL = ROOT / "tests" / "parity" / "causal_50hz"
OFFLINE = ROOT / "tests" / "parity" / "offline_50hz"


class Level(Metric):
    """Counts its inputs."""

    name = "level"
    columns = (Column("level", "level", "higher", "level"),)
    converts = True

    def __init__(self):
        torch.rand(7)  # as models are made
        self.judged = []

    def __call__(self, samples):
        self.judged += [sample.id for sample in samples]
        return [{"level": float(s.output.square().mean())} for s in samples]


@pytest.fixture
def made(monkeypatch):
    """The metrics that were made, under a name of the registry."""
    made = []

    class Entry:
        hub = False

        def make(self, options):
            made.append(Level())
            return made[-1]

    monkeypatch.setitem(registry.METRICS, "level", Entry())
    return made


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "data"
    return make_corpus("Folder", folder, ["train", "test"], 3, 2, duration=0.4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A codec that was never trained, as a folder."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    FocalCodec.from_config(CONFIG, name="tiny").save_pretrained(folder)
    return folder


def train(corpus, output, evaluation, run_opts=None, **overrides):
    overrides = {"num_valid": 2, "epochs": 1} | overrides
    hparams = make_hparams(corpus, output, evaluation=evaluation, **overrides)
    prepare_manifests(prepare_folder, hparams)
    options = {"device": "cpu", "noprogressbar": True} | (run_opts or {})
    fit_and_evaluate(hparams, options)


def last_line(output):
    return (output / "train_log.txt").read_text().splitlines()[-1]


def test_the_best_checkpoint_is_evaluated(corpus, tmp_path, model, made):
    run = tmp_path / "run"
    options = {"metrics": ["level"], "limit": 2, "save_audio": 1}
    train(corpus, run, options, start_from=[str(model)], epochs=2)
    out = run / "evaluation"
    for name in ("summary.md", "failures.csv", "plots", "audio"):
        assert (out / name).exists(), name
    with open(out / "utterances.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 == len(made[-1].judged)
    valid = json.loads((run / "save" / "valid.json").read_text())
    assert {row["id"] for row in rows} <= valid.keys()
    summary = json.loads((out / "summary.json").read_text())
    exported = export_runs(tmp_path / "exported", [model, run])
    [system] = summary["systems"]
    assert system["fingerprint"].startswith(exported.fingerprint)
    test, line = read_metrics(run)[-2:]
    assert (test["split"], line["split"]) == ("test", "evaluation")
    assert (line["step"], line["epoch"]) == (test["step"], test["epoch"])
    level = sum(float(row["level"]) for row in rows) / 2
    assert line["level"] == pytest.approx(level)
    assert line["bitrate"] == pytest.approx(300, rel=0.1)
    assert "code_usage" in line
    assert last_line(run).startswith(f"Epoch evaluated: {line['epoch']}, ")
    assert "test level: " in last_line(run)


def test_only_another_model_or_other_options_are_evaluated_again(
    corpus, tmp_path, model, made
):
    def judged(**options):
        train(
            corpus,
            tmp_path,
            {"metrics": ["level"]} | options.pop("evaluation", {}),
            start_from=[str(model)],
            **options,
        )
        return len(made[-1].judged)

    def fingerprint():
        summary = tmp_path / "evaluation" / "summary.json"
        return json.loads(summary.read_text())["systems"][0]["fingerprint"]

    assert judged() == 2
    first = fingerprint()
    assert judged() == 0
    assert last_line(tmp_path).startswith("Epoch evaluated: 1")
    assert judged(evaluation={"limit": 1}) == 1
    assert fingerprint() == first
    # More metrics are none of another evaluation.
    assert judged(evaluation={"limit": 1, "metrics": ["level", "mel"]}) == 0
    assert judged(epochs=3) == 2
    assert fingerprint() != first


def test_splits_to_test_on(corpus, tmp_path, model, made):
    train(
        corpus,
        tmp_path,
        {"metrics": "level"},
        start_from=[str(model)],
        test_splits=["test"],
    )
    assert (tmp_path / "save" / "test.json").is_file()
    assert sorted(made[-1].judged) == sorted(
        json.loads((tmp_path / "save" / "test.json").read_text())
    )
    assert len(made[-1].judged) == 6
    valid, test = (
        next(x for x in read_metrics(tmp_path) if x["split"] == split)
        for split in ("valid", "test")
    )
    # The only checkpoint on other data.
    assert test["loss"] != valid["loss"]


def test_test_splits_exclude_training_data(corpus, tmp_path):
    with pytest.raises(DataError, match="test_splits are trained on too"):
        train(corpus, tmp_path, None, test_splits=["test", "train"])


def test_voices_are_converted(corpus, tmp_path, model, made):
    options = {"metrics": ["level", "mel"], "voice_conversion": True}
    data = {"valid_splits": ["test"], "num_valid": 0}
    train(corpus, tmp_path, options, start_from=[str(model)], **data)
    line = read_metrics(tmp_path)[-1]
    assert "level" in line and "mel_distance" not in line
    with open(tmp_path / "evaluation" / "utterances.csv") as stream:
        assert all(x["target"] != x["speaker"] for x in csv.DictReader(stream))


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"metric": "level"}, ConfigError, "metric: Extra .*known: metrics"),
        ({"limit": 0}, ConfigError, "limit: .*greater than or equal to 1"),
        ({"min_duration": -1}, ConfigError, "min_duration: .*equal to 0"),
        ({"reference": "x"}, ConfigError, "needs voice_conversion"),
        ({"metrics": ["sdr"]}, ConfigError, "no metric 'sdr'"),
        ({"metrics": ["wer"]}, ConfigError, "path of a Whisper checkpoint"),
        ({"whisper": "nowhere.pt"}, CheckpointError, "nowhere.pt"),
        # One speaker validates, whose voice nobody else could take.
        ({"voice_conversion": True}, DataError, "no other speaker"),
    ],
)
def test_missing_requirements_stop_before_training(
    corpus, tmp_path, model, made, options, error, message
):
    options = {"metrics": ["level"]} | options
    with pytest.raises(error, match=message):
        train(corpus, tmp_path, options, start_from=[str(model)])
    assert not (tmp_path / "train_log.txt").exists()


def make_brain(stage, output, **options):
    hparams = make_hparams("data", output, stage=stage, refine=True, **options)
    return CodecBrain(
        {},
        hparams["opt_class"],
        hparams,
        {"device": "cpu"},
        hparams["checkpointer"],
    )


@pytest.mark.parametrize(
    "stage, options, message",
    [
        ("decoder", {}, "no trained compressor and no decompressor "),
        ("quantizer", {}, r"no trained decoder \(start_from has nothing\)"),
        (
            # The decoder learns from the teacher; there is no student yet.
            "decoder",
            {"codec": CAUSAL, "encoder_source": OFFLINE},
            "no trained encoder and no compressor",
        ),
    ],
)
def test_parts_that_are_missing_are_named(tmp_path, stage, options, message):
    if "codec" in options:
        config = json.loads((options["codec"] / "config.json").read_text())
        options = options | {
            "codec": FocalCodec.from_config(config),
            "sample_rate": 24000,
        }
    brain = make_brain(stage, tmp_path, **options)
    with pytest.raises(ConfigError, match=message):
        FinalEvaluation(brain, {}, "valid.json", "data")


@pytest.mark.parametrize("stage", ["decoder", "quantizer", "end_to_end"])
def test_stages_that_end_with_a_codec(tmp_path, model, stage):
    brain = make_brain(stage, tmp_path, start_from=[str(model)])
    evaluation = FinalEvaluation(brain, {}, "valid.json", "data")
    assert evaluation.out.name == "evaluation"


def test_a_debug_run_evaluates_a_little(corpus, tmp_path, model, made):
    options = {"metrics": ["level"], "limit": 5, "min_duration": 0.1}
    debug = {"debug": True, "debug_batches": 1, "debug_epochs": 1}
    train(corpus, tmp_path, options, debug, start_from=[str(model)])
    assert len(made[-1].judged) == 1
    assert (tmp_path / "evaluation_debug" / "summary.md").is_file()
    assert not (tmp_path / "evaluation").exists()


def test_training_is_as_without_evaluation(corpus, tmp_path, model, made):
    lines = []
    for name, options in (("with", {"metrics": ["level"]}), ("without", None)):
        train(corpus, tmp_path / name, options, start_from=[str(model)])
        text = (tmp_path / name / "train_log.txt").read_text()
        lines.append(text.splitlines()[:2])
    assert lines[0] == lines[1]


def test_too_many_failures_name_the_key(corpus, tmp_path, model, made):
    def broken(self, *args):
        raise RuntimeError("out of luck")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Level, "__call__", broken)
        with pytest.raises(DataError, match="evaluation: .*out of luck"):
            options = {"metrics": ["level"]}
            train(corpus, tmp_path, options, start_from=[str(model)])
    assert last_line(tmp_path).startswith("Epoch loaded: 1")
