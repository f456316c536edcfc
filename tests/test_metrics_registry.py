"""Metrics by name, codebook statistics and the cache of originals."""

import math
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechbrain_focalcodec.errors import CheckpointError, ConfigError
from speechbrain_focalcodec.metrics import registry
from speechbrain_focalcodec.metrics.codes import code_statistics
from speechbrain_focalcodec.metrics.originals import Originals
from speechbrain_focalcodec.metrics.registry import (
    GROUPS,
    METRICS,
    MetricOptions,
    make_metrics,
)

# The registry


@pytest.fixture(scope="module")
def default():
    return make_metrics(["default"])


def test_the_default_metrics_need_nothing_but_libraries(default):
    assert [metric.name for metric in default] == list(GROUPS["default"])
    assert not any(METRICS[name].hub for name in GROUPS["default"])


def test_no_two_metrics_share_a_field_or_a_key(default):
    for kind in ("key", "label", "numerator"):
        names = [
            getattr(column, kind)
            for metric in default
            for column in metric.columns
        ]
        assert len(set(names)) == len(names)


def test_every_group_is_of_metrics():
    for names in GROUPS.values():
        assert set(names) <= set(METRICS)


def test_duplicates_are_dropped():
    names = ["mel", "stoi", "mel"]
    assert [metric.name for metric in make_metrics(names)] == ["mel", "stoi"]


def test_libraries_are_imported_lazily(monkeypatch):
    for name in ("resemblyzer", "speechmos", "distillmos", "pesq", "whisper"):
        monkeypatch.setitem(sys.modules, name, None)
    assert make_metrics(["mel"])[0].name == "mel"


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("stoi", "pystoi", "metrics"),
        ("estoi", "pystoi", "metrics"),
        ("pesq", "pesq", "pesq"),
        ("pitch", "swift_f0", "metrics"),
        ("distillmos", "distillmos", "mos"),
        ("speaker", "resemblyzer", "speaker"),
    ],
)
def test_a_missing_extra_is_named(monkeypatch, name, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ImportError,
        match=rf"needs {module},.*'speechbrain_focalcodec\[{extra}\]'",
    ):
        make_metrics([name])


def test_unknown_metric():
    with pytest.raises(ConfigError, match="no metric 'sdr'; there are stoi,"):
        make_metrics(["mel", "sdr"])


def test_a_source_for_another_metric_is_refused():
    options = MetricOptions(sources={"wavlm": "folder"})
    with pytest.raises(ConfigError, match="for 'wavlm', only for utmos,"):
        make_metrics(["mel"], options)


def test_missing_whisper_path(tmp_path):
    with pytest.raises(ConfigError, match="wer needs the path of a Whisper"):
        make_metrics(["wer"])
    options = MetricOptions(whisper=tmp_path / "tiny.en.pt")
    with pytest.raises(CheckpointError, match="No Whisper checkpoint at"):
        make_metrics(["wer"], options)


@pytest.mark.parametrize(
    "name", [name for name, entry in METRICS.items() if entry.hub]
)
def test_a_source_reaches_its_metric(name, tmp_path):
    options = MetricOptions(sources={name: tmp_path})
    with pytest.raises((CheckpointError, ConfigError), match=str(tmp_path)):
        make_metrics([name], options)


def test_options_reach_the_metric(monkeypatch):
    made = {}

    def importing(module):
        class Maker:
            def __getattr__(self, name):
                return self

            def __call__(self, **arguments):
                made[module.rpartition(".")[2]] = arguments
                return SimpleNamespace(fingerprint="")

        return Maker()

    monkeypatch.setattr(registry.importlib, "import_module", importing)
    options = MetricOptions("cuda", "tiny.pt", {"utmos": "here"})
    metrics = make_metrics(["wer", "utmos", "wavlm-large-sv", "pitch"], options)
    assert [metric.fingerprint for metric in metrics] == ["", "here", "", ""]
    assert made == {
        "dwer": {"path": "tiny.pt", "device": "cuda"},
        "utmos": {"source": "here", "device": "cuda"},
        "wavlm_speaker": {"size": "large", "source": None, "device": "cuda"},
        "pitch": {},
    }


# Codes


def test_entropy_of_known_codes():
    counts = torch.tensor([4, 2, 1, 1] + 12 * [0])
    bits = 0.5 * 1 + 0.25 * 2 + 2 * 0.125 * 3
    assert code_statistics(counts) == {
        "code_usage": 0.25,
        "code_entropy": pytest.approx(bits / 4),
        "code_entropy_used": pytest.approx(bits / 2),
    }


def test_a_single_code_has_no_entropy():
    assert code_statistics(torch.tensor([7, 0])) == {
        "code_usage": 0.5,
        "code_entropy": 0.0,
        "code_entropy_used": 0.0,
    }
    assert code_statistics(torch.tensor([0, 0])) == {}


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=20))
def test_code_statistics_are_shares(counts):
    found = code_statistics(torch.tensor(counts))
    assert bool(found) == (sum(counts) > 0)
    assert all(0 <= value <= 1 for value in found.values())
    if found:
        assert found["code_entropy"] <= found["code_entropy_used"]
        used = sum(count > 0 for count in counts)
        assert found["code_entropy"] * math.log(len(counts)) == pytest.approx(
            found["code_entropy_used"] * math.log(max(used, 1))
        )


# Cache of originals


def test_originals_are_limited():
    computed = []

    def compute(sigs):
        computed.extend(int(sig[0]) for sig in sigs)
        return [int(sig[0]) for sig in sigs]

    sigs = {name: torch.tensor([float(ord(name))]) for name in "abc"}
    originals = Originals(compute, limit=2)

    def ask(names):
        found = originals(list(names), [sigs[name] for name in names])
        assert found == [ord(name) for name in names]
        del computed[: len(computed)]

    ask("ab")
    ask("a")  # b is now the one not asked for the longest
    ask("c")
    assert len(originals.kept) == 2
    originals(["a"], [sigs["a"]])
    assert computed == []
    originals(["b"], [sigs["b"]])
    assert computed == [ord("b")]
    # A batch beyond the limit, with one utterance twice.
    ask("abcab")
    assert len(originals.kept) == 2


def test_metrics_of_the_users_own(tmp_path, monkeypatch):
    (tmp_path / "their_metrics.py").write_text(
        "from speechbrain_focalcodec.metrics.mel import MelDistance as Mine\n"
        "wrong = dict\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    mel, mine = make_metrics(["mel", "their_metrics:Mine"])
    assert type(mel) is type(mine)
    with pytest.raises(ValueError, match="must make a .*Metric, not dict"):
        make_metrics(["their_metrics:wrong"])
    with pytest.raises(ImportError, match="no module nowhere on the Python"):
        make_metrics(["nowhere:Mine"])
