"""Metrics whose packages include their models."""

import math
import sys

import pytest
import torch
from metric_samples import NOISY, NOTHING, SPEECH, noisy, same

from speechbrain_focalcodec.metrics.base import Sample
from speechbrain_focalcodec.metrics.distillmos import DistillMos
from speechbrain_focalcodec.metrics.dnsmos import Dnsmos
from speechbrain_focalcodec.metrics.speaker import ResemblyzerSimilarity


@pytest.fixture(scope="module")
def dnsmos():
    return Dnsmos()


@pytest.fixture(scope="module")
def distillmos():
    return DistillMos()


@pytest.fixture(scope="module")
def speaker():
    return ResemblyzerSimilarity()


@pytest.mark.parametrize("name", ["dnsmos", "distillmos", "speaker"])
@pytest.mark.parametrize("sig", NOTHING.values(), ids=NOTHING)
def test_empty_and_broken_signals_have_no_figure(name, sig, request):
    metric = request.getfixturevalue(name)
    [row] = metric([Sample("a", SPEECH, sig)])
    assert set(row) == {column.numerator for column in metric.columns}
    assert set(row.values()) == {None}


@pytest.mark.parametrize("name", ["dnsmos", "distillmos", "speaker"])
def test_short_outputs_have_a_finite_figure_or_none(name, request):
    metric = request.getfixturevalue(name)
    outputs = [SPEECH[8000 : 8000 + length] for length in (1, 100, 4000)]
    rows = metric([Sample("a", SPEECH, sig) for sig in outputs])
    values = [value for row in rows for value in row.values()]
    assert all(value is None or math.isfinite(value) for value in values)


@pytest.mark.parametrize("name", ["dnsmos", "distillmos", "speaker"])
def test_applies_to_converted_voices(name, request):
    assert request.getfixturevalue(name).converts


# DNSMOS


def test_dnsmos_is_the_librarys(dnsmos):
    from speechmos import dnsmos as library

    [row] = dnsmos([noisy()])
    expected = library.run(NOISY.numpy(), 16000)
    assert row == {
        "dnsmos_ovrl": pytest.approx(expected["ovrl_mos"]),
        "dnsmos_sig": pytest.approx(expected["sig_mos"]),
        "dnsmos_bak": pytest.approx(expected["bak_mos"]),
        "dnsmos_p808": pytest.approx(expected["p808_mos"]),
    }


def test_dnsmos_judges_loud_and_silent_output(dnsmos):
    # speechmos refuses the first.
    loud, clipped, silent = dnsmos(
        [
            Sample("a", SPEECH, 20 * SPEECH),
            Sample("a", SPEECH, (20 * SPEECH).clamp(-1, 1)),
            Sample("a", SPEECH, torch.zeros_like(SPEECH)),
        ]
    )
    assert loud == clipped
    # A silent output has a bad score, not None.
    assert 0 < silent["dnsmos_ovrl"] < 2


@pytest.mark.parametrize("module", ["speechmos", "onnxruntime", "librosa"])
def test_dnsmos_names_its_extra(module, monkeypatch):
    for name in list(sys.modules):
        if name.startswith("speechmos"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"needs {module}.*\[mos\]"):
        Dnsmos()


# DistillMOS


def test_distillmos_is_the_librarys_in_any_batch(distillmos):
    import distillmos as library

    model = library.ConvTransformerSQAModel().eval()
    outputs = [SPEECH, NOISY[:20000], SPEECH.repeat(3)]
    assert len(outputs[2]) > distillmos.window
    rows = distillmos([Sample("a", sig, sig) for sig in outputs])
    for sig, row in zip(outputs, rows, strict=True):
        with torch.no_grad():
            expected = float(model(sig[None]))
        assert row["distillmos"] == pytest.approx(expected, abs=1e-4)
    assert rows[0]["distillmos"] > rows[1]["distillmos"]


def test_distillmos_prints_nothing(capsys):
    DistillMos()
    assert capsys.readouterr().out == ""


def test_distillmos_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "distillmos", None)
    with pytest.raises(ImportError, match=r"needs distillmos.*\[mos\]"):
        DistillMos()


# Speaker similarity


def test_speaker_similarity_is_the_librarys(speaker):
    import resemblyzer

    encoder = resemblyzer.VoiceEncoder("cpu", verbose=False)
    embeddings = [
        encoder.embed_utterance(resemblyzer.preprocess_wav(sig.numpy()))
        for sig in (SPEECH, NOISY)
    ]
    rows = speaker([same(), noisy()])
    assert rows[0]["speaker_similarity"] == pytest.approx(1)
    assert rows[1]["speaker_similarity"] == pytest.approx(
        float(embeddings[0] @ embeddings[1]), abs=1e-5
    )
    assert rows[1]["speaker_similarity"] < 0.99


def test_a_converted_voice_is_compared_with_the_target(speaker):
    converted = Sample("a", torch.zeros(16000), SPEECH, voice=SPEECH)
    [row] = speaker([converted])
    assert row["speaker_similarity"] == pytest.approx(1)


@pytest.mark.parametrize(
    "output", [torch.zeros(16000), torch.full((16000,), 1e-7), SPEECH[:100]]
)
def test_similarity_without_speech_is_none(speaker, output):
    assert speaker([Sample("a", SPEECH, output)]) == [
        {"speaker_similarity": None}
    ]


def test_an_original_is_embedded_once(monkeypatch):
    metric = ResemblyzerSimilarity()
    embedded = []
    embed = metric.embed
    monkeypatch.setattr(
        metric, "embed", lambda sig: embedded.append(sig) or embed(sig)
    )
    first = metric([same(name="a")])
    assert len(embedded) == 2
    assert metric([same(name="a")]) == first
    assert len(embedded) == 3
    metric([Sample("a", NOISY, SPEECH)])  # another corpus with the same names
    assert len(embedded) == 5


def test_speaker_similarity_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "resemblyzer", None)
    with pytest.raises(ImportError, match=r"needs resemblyzer.*\[speaker\]"):
        ResemblyzerSimilarity()
