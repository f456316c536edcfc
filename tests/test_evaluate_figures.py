"""The figures of an evaluation, and its table."""

import numpy as np
import pytest

from speechbrain_focalcodec.metrics.base import Column
from speechbrain_focalcodec.metrics.bootstrap import bootstrap_difference
from speechbrain_focalcodec.metrics.report import to_markdown
from speechbrain_focalcodec.metrics.summary import (
    Figure,
    Summary,
    SystemSummary,
    difference,
    figure,
)

RATIO = Column("wer", "WER %", "lower", "edits", "words", 100, 1)
MEAN = Column("stoi", "STOI", "higher", "stoi", digits=3)


def test_markdown():
    columns = (MEAN, RATIO, Column("none", "none", None, "none"))
    nothing = Figure(None, None, None, 0)
    one = SystemSummary(
        *("a|b", "", 4, 0, 650.0, 0.01),
        {
            "stoi": Figure(0.81, 0.7, 0.9, 4),
            "wer": Figure(2.04, 1, 3, 3),
            "none": nothing,
        },
        {"code_usage": 0.5},
    )
    two = SystemSummary(
        *("c", "", 4, 1, 1300.0, None),
        {
            "stoi": Figure(0.7, 0.6, 0.8, 4),
            "wer": Figure(2.0, 1, 3, 4),
            "none": nothing,
        },
        {},
        {"stoi": Figure(-0.11, -0.2, 0, 4), "wer": nothing},
    )
    copy = SystemSummary(
        *("original", "", 4, 0, None, 0.0),
        {"stoi": Figure(1, 1, 1, 4), "wer": nothing, "none": nothing},
        {},
        {"stoi": Figure(0.19, 0, 0.2, 4), "wer": nothing},
    )
    text = to_markdown(
        Summary(
            *("resynthesis", "in", 4, 1, 90.0, 7, columns, {}),
            *([one, two, copy], {}, "a|b", 0.5),
        )
    )
    assert text == (
        "# Resynthesis\n\n"
        "4 utterances (1.5 min) of `in`, each of 0.5 s or more; 1 could not "
        "be read; 95 % intervals by bootstrap over utterances (seed 7).\n"
        "With c, 1 failed in whole or in part (see failures.csv).\n"
        "n: of how many utterances a figure is, if not of all.\n\n"
        "| system | kbps | STOI ↑ | WER % ↓ | codes used % | "
        "real-time factor |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| a\\|b | 0.65 | **0.810** [0.700, 0.900] | "
        "**2.0** [1.0, 3.0] (n=3) | 50.0 | 0.0100 |\n"
        "| c | 1.30 | 0.700 [0.600, 0.800] | **2.0** [1.0, 3.0] | – | – |\n"
        "| original | – | 1.000 [1.000, 1.000] | – | – | 0.0000 |\n\n"
        "Differences from a|b, on the same utterances (paired bootstrap):\n\n"
        "| system | STOI ↑ | WER % ↓ |\n| --- | --- | --- |\n"
        "| c | -0.110 [-0.200, +0.000] | – |\n"
        "| original | +0.190 [+0.000, +0.200] | – |\n"
    )


def test_figures_by_hand():
    rows = [
        {"edits": 1, "words": 4},
        {"edits": 3, "words": 12},
        {"edits": None, "words": 100},
        {"edits": 5},
    ]
    found = figure(RATIO, rows)
    # 1/4 and 3/12: every draw is 25 %.
    assert found == Figure(25.0, 25.0, 25.0, 2)
    rows[1]["edits"] = 9
    found = figure(RATIO, rows)
    # Of two utterances a quarter of the draws is all of one.
    assert found == Figure(62.5, 25.0, 75.0, 2)
    assert figure(RATIO, [{"edits": 1, "words": 0}]) == Figure(
        None, None, None, 1
    )
    assert figure(MEAN, []) == Figure(None, None, None, 0)
    # An utterance with no words and errors makes no interval infinite.
    assert figure(RATIO, [{"edits": 3, "words": 0}, rows[0]]).high < 1000


def test_differences_are_paired():
    hard = np.arange(50) % 2  # 0 or 1, the same for both
    one = {str(i): {"stoi": float(x)} for i, x in enumerate(hard)}
    two = {str(i): {"stoi": x - 0.25} for i, x in enumerate(hard)}
    del two["7"]
    two["8"]["stoi"] = None
    found = difference(MEAN, two, one)
    assert (found.value, found.low, found.high) == pytest.approx((-0.25,) * 3)
    assert found.count == 48
    ratio = bootstrap_difference(([4, 0], [4, 4]), ([0, 0], [1, 3]))
    assert (ratio.value, ratio.low, ratio.high) == (0.5, 0, 1)
    with pytest.raises(ValueError, match="1 utterances but 2"):
        bootstrap_difference(([1], None), ([1, 2], None))
