"""Pictures of spectrograms."""

import pytest
import torch
from matplotlib.figure import Figure

from speechbrain_focalcodec.utils.plotting import plot_spectrograms


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved."""
    saved = []
    save = Figure.savefig

    def spy(self, *args, **kwargs):
        saved.append(self)
        return save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", spy)
    return saved


def tone(frequency, seconds, level=1.0, sample_rate=16000):
    time = torch.arange(int(seconds * sample_rate)) / sample_rate
    return level * torch.sin(2 * torch.pi * frequency * time)


def test_axes_and_common_scale(tmp_path, figures):
    sigs = {"loud": tone(2000, 2.0), "soft": tone(5000, 1.0, level=0.1)}
    plot_spectrograms(tmp_path / "new" / "two.png", sigs, 16000)
    loud, soft, colorbar = figures[0].axes
    assert [axes.get_title(loc="left") for axes in (loud, soft)] == list(sigs)
    assert soft.get_xlabel() == "time (s)"
    assert soft.get_ylabel() == loud.get_ylabel() == "frequency (kHz)"
    assert colorbar.get_ylabel() == "level (dB)"
    assert soft.get_xlim() == loud.get_xlim() == (0, 2)
    assert soft.get_ylim() == (0, 8)

    pictures = [axes.images[0] for axes in (loud, soft)]
    assert pictures[0].get_clim() == pictures[1].get_clim() == (-80, 0)
    assert pictures[0].get_extent() == [0, 2, 0, 8]
    assert pictures[1].get_extent() == [0, 1, 0, 8]
    levels = [picture.get_array() for picture in pictures]
    assert levels[0].max() == pytest.approx(0, abs=0.1)
    assert levels[1].max() == pytest.approx(-20, abs=0.5)
    # Each tone lies at its frequency.
    for level, kilohertz in zip(levels, (2, 5), strict=True):
        row = level.mean(axis=1).argmax()
        assert 8 * row / (len(level) - 1) == pytest.approx(kilohertz, abs=0.05)


def test_rates_by_title(tmp_path, figures):
    rates = {"input": 16000, "output": 24000}
    sigs = {
        title: tone(3000, 1.0, sample_rate=rate)
        for title, rate in rates.items()
    }
    plot_spectrograms(tmp_path / "a.png", sigs, rates)
    low, high = (axes.images[0] for axes in figures[0].axes[:2])
    assert low.get_extent() == [0, 1, 0, 8]
    assert high.get_extent() == [0, 1, 0, 12]
    assert figures[0].axes[0].get_ylim() == (0, 12)
    # One tone has one level and frequency at any rate.
    assert low.get_array().max() == pytest.approx(
        high.get_array().max(), abs=0.1
    )
    for image, top in ((low, 8), (high, 12)):
        level = image.get_array()
        row = level.mean(axis=1).argmax()
        assert top * row / (len(level) - 1) == pytest.approx(3, abs=0.05)


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_formats(tmp_path, suffix):
    path = tmp_path / f"picture{suffix}"
    plot_spectrograms(path, {"tone": tone(440, 0.2)}, 24000)
    start = path.read_bytes()[:5]
    assert start in (b"\x89PNG\r", b"%PDF-", b"<?xml")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "sig",
    [
        torch.zeros(16000),
        torch.tensor([0.5]),
        torch.full((16000,), float("nan")),
        torch.full((16000,), float("inf")),
        tone(440, 0.5).requires_grad_(),
        tone(440, 0.5).half(),
    ],
    ids=["silent", "one sample", "nan", "inf", "grad", "half"],
)
def test_odd_signals_are_drawn(tmp_path, sig):
    plot_spectrograms(tmp_path / "a.png", {"odd": sig}, 16000)
    assert (tmp_path / "a.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("sigs", "message"),
    [
        ({}, "No signal"),
        ({"a": torch.zeros(0)}, "'a' must have shape"),
        ({"a": torch.zeros(1, 100)}, "'a' must have shape"),
    ],
)
def test_refused(tmp_path, sigs, message):
    with pytest.raises(ValueError, match=message):
        plot_spectrograms(tmp_path / "a.png", sigs, 16000)
    assert list(tmp_path.iterdir()) == []


def test_failed_write_leaves_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fail(self, temporary, **kwargs):
        temporary.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        plot_spectrograms(path, {"tone": tone(440, 0.2)}, 16000)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
