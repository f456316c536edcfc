"""The worked example of docs/downstream.md is run."""

import re
import runpy
import sys
from pathlib import Path

from make_corpus import make_corpus
from own_script import change_yaml

from speechbrain_focalcodec.audio import read_audio, write_audio

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "downstream.md"


def blocks(kind):
    """The page's blocks of code of one kind."""
    return re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(), re.S)


def test_the_example_task_runs(tmp_path, monkeypatch, capsys):
    brain, use = blocks("python")
    (changes,) = blocks("yaml")
    (command,) = (c for c in blocks("sh") if "spotting.yaml" in c)
    for name in ("hparams", "recipes"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "spotting.py").write_text(brain)
    yaml = change_yaml(ROOT / "hparams/downstream/speaker_id.yaml", changes)
    (tmp_path / "spotting.yaml").write_text(yaml)
    splits = ["an4_clstk", "an4test_clstk"]
    corpus = make_corpus("AN4", tmp_path / "AN4", splits, 3, 4)
    (path,) = (tmp_path / "AN4" / "etc").glob("an4_clstk.transcription")
    path.write_text(path.read_text().replace("UTTERANCE 1", "PLEASE ENTER"))
    sig, rate = read_audio(next(corpus.rglob("*.wav")))
    write_audio(tmp_path / "speech.wav", sig, rate)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    words = command.split()
    assert words[:2] == ["PYTHONPATH=.", "python"]
    quick = "--number_of_epochs=1 --num_valid=4 --device=cpu"
    monkeypatch.setattr(sys, "argv", [*words[2:], *quick.split()])
    runpy.run_path(words[2], run_name="__main__")
    log = (tmp_path / "results/spotting/train_log.txt").read_text()
    assert "test error_rate" in log

    monkeypatch.delitem(sys.modules, "spotting")
    (tmp_path / "spotting.py").unlink()
    names = {"__name__": "page"}
    exec(compile(use, PAGE.name, "exec"), names)
    assert set(names["found"].probabilities) == {
        "ENTER",
        "ERASE",
        "REPEAT",
        "RUBOUT",
        "YES",
        "(none)",
    }
    assert names["found"].label in capsys.readouterr().out
