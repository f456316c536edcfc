"""The commands that the page on training shows fit the code."""

import re
import shlex
from pathlib import Path

import pytest
import speechbrain as sb
from own_script import read_yaml

from speechbrain_focalcodec.hub import RELEASES

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
LOOP = re.compile(r"for (\w+) in ([^;]+); do\n(.*?)\ndone", re.S)


def expand(match):
    name, values, body = match.groups()
    return "\n".join(
        body.replace(f"${name}", value) for value in values.split()
    )


def commands():
    """The lines of the page's blocks, in order, loops unrolled."""
    code = re.findall(r"^    (.*)$", PAGE, re.M)
    text = "\n".join(code).replace("\\\n", " ")
    return [
        shlex.split(line)
        for line in LOOP.sub(expand, text).splitlines()
        if " ... " not in line
    ]


def read_stage(words):
    """What a command trains: its YAML with the command's options."""
    path, _, overrides = sb.parse_arguments(words[2:])
    return path, read_yaml(ROOT / path, overrides)


@pytest.fixture(scope="module")
def stages():
    """Each training of the page: hyperparameters, by the output folder."""
    found = {}
    for words in commands():
        if words[:1] != ["python"] or not words[1].startswith("recipes/"):
            continue
        assert (ROOT / words[1]).is_file()
        path, hparams = read_stage(words)
        if not any(word.startswith("--output_folder=") for word in words):
            assert hparams["output_folder"] == f"results/{Path(path).stem}"
        sources = hparams["start_from"]
        sources = [sources] if isinstance(sources, str) else sources
        # Trained above.
        assert set(sources) <= found.keys(), words
        found[hparams["output_folder"]] = hparams
    return found


def trains(hparams):
    """Names of the parts that a stage trains."""
    return set(hparams["trains"])


def test_all_releases_are_trained(stages):
    exports = [x[2:] for x in commands() if x[:2] == ["focalcodec", "export"]]
    names = set()
    for out, *arguments in exports:
        runs = [x for x in arguments if x.startswith("results/")]
        parts = set().union(*(trains(stages[run]) for run in runs))
        assert parts >= {"compressor", "decompressor", "decoder"}
        assert ("encoder" in parts) != ("--encoder" in arguments)
        # The quantizer's run knows its release.
        name = stages[runs[-1]]["codec"]["name"]
        assert name.replace("_causal", "").endswith(out.removeprefix("my_"))
        names.add(f"lucadellalib/{name}")
    assert names == set(RELEASES)


def test_the_further_stages_see_the_audio_that_they_decode(stages):
    hparams = stages["results/decoder_dequantized"]
    assert hparams["dequantized"] is True
    first = stages["results/stream_decoder"]
    for key in ("sample_rate", "train_data_options", "batch_size"):
        assert hparams[key] == first[key]
    assert hparams["codec"] == first["codec"]


@pytest.mark.parametrize("name", ["50hz", "50hz_causal"])
def test_all_stages_of_the_mini_models_are_shown(stages, name):
    found = [
        hparams
        for folder, hparams in stages.items()
        if folder.startswith(f"results/mini_{name}/")
    ]
    assert len(found) == 5
    for hparams in found:
        assert hparams["codec"]["name"] == f"focalcodec_mini_{name}"
    *_, words, last = found
    assert trains(last) == {"compressor", "decompressor", "decoder"}
    assert last["start_from"] == words["output_folder"]
    assert "discriminator" in last["modules"] and not words["modules"]
    assert words["whisper_checkpoint"] == last["whisper_checkpoint"]


def test_each_yaml_has_its_place():
    """In the tables of the stages, written out or by its ending."""
    part = PAGE[PAGE.index("## Stages") : PAGE.index("## What training costs")]
    named = set()
    for row in re.findall(r"^\|.*", part, re.M):
        first = ""
        for name in re.findall(r"`(\w+)`", row):
            if name.startswith("_"):
                # `stream_joint_2k`, `_4k`: the last part differs.
                name = first.rsplit("_", 1)[0] + name
            else:
                first = name
            named.add(name)
    yamls = {path.stem for path in (ROOT / "hparams" / "train").glob("*.yaml")}
    assert yamls <= named


def test_what_it_refers_to_is_there():
    for words in commands():
        if words[:1] == ["OMP_NUM_THREADS=1"]:
            words = words[1:]
        if words[:1] == ["python"]:
            assert (ROOT / words[1]).is_file(), words
    headings = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", PAGE, re.M)
    }
    assert set(re.findall(r"\]\(#([\w-]+)\)", PAGE)) <= headings
    for link in re.findall(r"\]\((\.\./[^)#]+)", PAGE):
        assert (ROOT / "docs" / link).exists(), link
