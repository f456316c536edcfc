"""The curves of trainings as one picture."""

import json

import numpy as np
import pytest
from matplotlib.image import imread
from typer.testing import CliRunner

from speechbrain_focalcodec.cli import app
from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.training.curves import (
    POINTS,
    Curves,
    draw_curves,
    read_curves,
    read_runs,
)

TEXT = """\
epoch: 1, steps: 54, lr: 2.70e-04 - train loss: -4.38e-02, train mse: 5.36e-01 \
- valid loss: 2.54e-01, valid mse: 2.54e-01, valid code_usage: 4.34e-01
epoch: 2, steps: 108, lr: 5.40e-04 - train loss: 9.00, train mse: 9.00 \
- valid loss: 9.00, valid mse: 9.00, valid code_usage: 9.00e-01
epoch: 2, steps: 108, lr: 5.40e-04 - train loss: -3.72e-01, train mse: nan \
- valid loss: 2.15e-01, valid mse: 2.15e-01, valid code_usage: 4.74e-01
Epoch loaded: 2 - test loss: 2.15e-01, test mse: 2.15e-01
epoch: 3, steps: 162, lr: 5.40e"""


@pytest.fixture
def text_run(tmp_path):
    """A run without metrics.jsonl that was killed."""
    folder = tmp_path / "old" / "quantizer"
    folder.mkdir(parents=True)
    (folder / "train_log.txt").write_text(TEXT)
    return folder


@pytest.fixture
def run(tmp_path):
    """A run with both logs."""
    folder = tmp_path / "new" / "quantizer"
    folder.mkdir(parents=True)
    (folder / "train_log.txt").write_text(TEXT)
    lines = [
        ("train", 50, {"lr": 0.1, "mse": 4.0, "grad_norm": 300.0}),
        ("train_epoch", 54, {"mse": 3.9, "code_usage": 0.5}),
        ("valid", 54, {"mse": 2.0, "code_usage": 0.4}),
        ("train", 100, {"lr": 0.2, "mse": 3.0, "grad_norm": 1.0}),
        ("train_epoch", 108, {"mse": 2.9, "code_usage": 0.7}),
        ("valid", 108, {"mse": 1.5, "code_usage": 0.6}),
        ("test", 54, {"mse": 7.0}),
    ]
    with open(folder / "metrics.jsonl", "w") as stream:
        for split, step, values in lines:
            line = {"split": split, "step": step, "epoch": 1, **values}
            stream.write(json.dumps(line) + "\n")
    return folder


def plain(curves):
    return {
        term: {
            split: dict(zip(steps, values, strict=True))
            for split, (steps, values) in splits.items()
        }
        for term, splits in curves.terms.items()
    }


def test_the_text_of_an_older_run(text_run):
    terms = plain(read_curves(text_run))
    assert terms.pop("mse")["train"][54] == 0.536
    assert terms == {
        "lr": {"train": {54: 2.7e-4, 108: 5.4e-4}},
        "loss": {
            "train": {54: -0.0438, 108: -0.372},
            "valid": {54: 0.254, 108: 0.215},
        },
        "code_usage": {"valid": {54: 0.434, 108: 0.474}},
    }


def test_the_lines_of_json(run):
    assert plain(read_curves(run)) == {
        "lr": {"train": {50: 0.1, 100: 0.2}},
        "mse": {"train": {50: 4.0, 100: 3.0}, "valid": {54: 2.0, 108: 1.5}},
        "grad_norm": {"train": {50: 300.0, 100: 1.0}},
        # Only epochs have it.
        "code_usage": {
            "train": {54: 0.5, 108: 0.7},
            "valid": {54: 0.4, 108: 0.6},
        },
    }


def test_one_panel_per_term(run, text_run):
    figure = draw_curves(read_runs([run, text_run]))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [
        "loss",
        "mse",
        "codes used (share)",
        "gradient norm",
        "learning rate",
    ]
    loss, mse, usage, norm, rate = figure.axes
    # Of both runs, training and validation.
    assert [len(axes.lines) for axes in figure.axes] == [2, 4, 3, 1, 2]
    assert [axes.get_yscale() for axes in figure.axes] == [
        "linear",  # negative
        "log",
        "linear",
        "log",
        "linear",
    ]
    assert all(axes.get_xlim()[1] > 108 for axes in figure.axes)
    train, valid = mse.lines[:2]
    assert train.get_color() == valid.get_color() != mse.lines[2].get_color()
    assert train.get_linewidth() < valid.get_linewidth()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "training",
        "validation",
        "new/quantizer",
        "old/quantizer",
    ]


def test_selected_panels(run, text_run, tmp_path):
    curves = read_runs([run, text_run])
    curves[0].terms["long"] = {"train": (np.array([9e9]), np.ones(1))}
    usage, mse = draw_curves(curves, ["code_usage", "mse", "mse"]).axes
    assert mse.get_title(loc="left") == "mse" and len(mse.lines) == 4
    assert usage.get_title(loc="left") == "codes used (share)"
    # As long as what is drawn.
    assert usage.get_xlim()[1] == pytest.approx(1.02 * 108)
    out = tmp_path / "some.png"
    arguments = ["plot-training", str(run), "--out", str(out), "--terms"]
    result = CliRunner().invoke(app, [*arguments, "mse, lr"])
    assert result.exit_code == 0, result.output
    assert out.is_file()
    result = CliRunner().invoke(app, [*arguments, "mel,mse"])
    assert result.exit_code == 2
    assert "no run has mel; there are mse," in result.output


@pytest.mark.parametrize("runs", [1, 9])
@pytest.mark.parametrize("terms", [1, 2, 4, 8])
def test_no_text_lies_over_another(runs, terms):
    steps = np.arange(1, 40) * 10000.0
    names = [f"a_run_with_a_rather_long_name_and_{i}" for i in range(runs)]
    curves = [
        Curves(
            name,
            {
                f"term_{j}": {"train": (steps, 10.0 ** (j + 1) / steps)}
                for j in range(terms)
            },
        )
        for name in names
    ]
    figure = draw_curves(curves)
    figure.canvas.draw()
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    boxes.append(figure.legends[0].get_window_extent())
    for box in boxes:
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1
        assert box.y0 >= 0 and box.y1 <= figure.bbox.y1
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            labels = [
                tick.label1.get_window_extent()
                for tick in axis.get_major_ticks()
                if low <= tick.get_loc() <= high
            ]
            assert len(labels) >= 2
            for one, next_one in zip(labels, labels[1:], strict=False):
                assert not one.overlaps(next_one)


def test_long_curves_are_thinned():
    steps = np.arange(10 * POINTS + 7, dtype=float)
    values = np.where(steps < 25, np.nan, 2.0)
    (axes,) = draw_curves(
        [Curves("run", {"a": {"train": (steps, values)}})]
    ).axes
    x, y = axes.lines[0].get_data()
    assert POINTS / 2 < len(x) <= POINTS
    assert x[0] == 5.0 and x[-1] <= steps[-1]
    assert np.isnan(y[:2]).all() and (y[2:] == 2.0).all()


def test_names_tell_runs_apart(run, text_run):
    assert [curves.name for curves in read_runs([run])] == ["quantizer"]
    same = [curves.name for curves in read_runs([run, run])]
    assert same == ["quantizer", "quantizer"]
    mixed = [curves.name for curves in read_runs([run, text_run, run])]
    assert mixed == ["new/quantizer", "old/quantizer", "new/quantizer"]


def test_the_command(run, text_run, tmp_path):
    out = tmp_path / "pictures" / "curves.png"
    arguments = ["plot-training", str(run), str(text_run), "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert result.output == f"{out}: new/quantizer, old/quantizer\n"
    height, width, _ = imread(out).shape
    assert width > 1200 and height > 600
    # Once more, over the picture that is there.
    assert CliRunner().invoke(app, arguments[:2] + arguments[3:]).exit_code == 0


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        (None, "no such folder"),
        ({}, "has neither metrics.jsonl nor train_log.txt"),
        ({"metrics.jsonl": "x"}, "holds no line of a training's log"),
        ({"train_log.txt": "epoch: 1, steps"}, "nothing was logged yet"),
    ],
)
def test_a_folder_that_is_no_run(tmp_path, files, problem):
    folder = tmp_path / "run"
    if files is not None:
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
    with pytest.raises(DataError, match=problem) as raised:
        read_curves(folder)
    assert str(folder) in str(raised.value)
    out = str(tmp_path / "a.png")
    result = CliRunner().invoke(
        app, ["plot-training", str(folder), "--out", out]
    )
    assert result.exit_code == 1
    assert problem in result.output


def test_a_picture_of_an_unknown_kind(run):
    result = CliRunner().invoke(
        app, ["plot-training", str(run), "--out", "curves.jsonl"]
    )
    assert result.exit_code == 2
    assert "must end in .png, .pdf or .svg" in result.output
