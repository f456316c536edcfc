"""The commands and snippets of README, docs and recipes run.

Each page gets a folder with what it names: speech, corpora of tones, tiny
models in place of the releases. Bash expands a page's commands (variables,
loops, continued lines), which then run in this process, in the page's order.
The quick tests run the snippets and what needs no training; trainings are
checked against their YAMLs (tests/test_recipes.py trains each of these). The
slow tests export to ONNX and run whole pages of recipes, shortened by the flags
of their rows in tests/recipes.
"""

import configparser
import contextlib
import csv
import io
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import speechbrain as sb
import torch
import typer
from fake_sounddevice import FakeSoundDevice
from make_corpus import make_corpus
from make_tokens import make_tokens
from own_script import change_yaml, read_yaml
from ruamel.yaml import YAML
from trained_tasks import trained_asr, trained_tts

from speechbrain_focalcodec.cli import app
from speechbrain_focalcodec.training.overrides import (
    check_overrides,
    parse_overrides,
)

ROOT = Path(__file__).resolve().parents[1]
PARITY = ROOT / "tests" / "parity"
PAGES = {
    path.relative_to(ROOT).as_posix(): path
    for path in (
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        ROOT / "docs/examples/audio/README.md",
        *sorted((ROOT / "recipes").glob("*/README.md")),
    )
}
# Their own tests train with what they show.
OTHERS = ("docs/downstream.md", "docs/training_from_tokens.md")
# Exports take minutes.
ONNX = "docs/onnx.md"
RELEASES = {
    "focalcodec_50hz": "offline_50hz",
    "focalcodec_25hz": "offline_25hz",
    "focalcodec_12_5hz": "offline_12_5hz",
    "focalcodec_50hz_2k_causal": "causal_50hz",
    "focalcodec_50hz_4k_causal": "causal_50hz",
    "focalcodec_50hz_65k_causal": "causal_50hz",
}
LIBRI = "train-clean-100 train-clean-360 train-other-500 dev-clean test-clean"
CORPORA = {
    "LibriSpeech": f"{LIBRI} train-clean-5 train-many-speakers "
    "dev-many-speakers",
    "LibriTTS": LIBRI,
    "LibriLight": "small medium",
    "AN4": "an4_clstk an4test_clstk",
    "Folder": "train dev",
}
# Bash writes down what a page starts. As functions, they see its variables.
RECORDER = """
record() { python3 -c '
import json, sys
print(json.dumps(sys.argv[2:]), file=open(sys.argv[1], "a"))
' "$RECORD" "$@"; }
python() { if [ "$1" = - ]; then record python - "$(cat)"
    else record python "$@"; fi; }
for name in focalcodec torchrun make pip tensorboard srun sudo apt-get ffmpeg nc
do eval "$name() { record $name \\"\\$@\\"; }"; done
"""
STARTS = re.compile(
    r"^ *([A-Z]+=|for .*; do$|(PYTHONPATH|OMP_NUM_THREADS)=\S+ |export |"
    r"(focalcodec|python|torchrun|make|pip|srun|sudo|\$T) )",
    re.M,
)
# Options that shorten a command, or need the hub or a tool that the page asks
# to install; None leaves an option out.
SHORTER: dict[str, dict[str, str | None]] = {
    "tokenize": {
        "--processes": "1",
        "--workers": "0",
        "--engine": None,
        "--ray-address": None,
    },
    "evaluate": {"--metrics": "stoi", "--whisper": None},
}
OTHER_TOOLS = ("codec2:", "opus:")
REQUIRED = ("data_folder", "start_from", "encoder_source")
# Flags of a row that stay with the page.
PAGES_OWN = (
    "--codec_source",
    "--debug",
    "--encoder_source",
    "--num_valid",
    "--start_from",
    "--test_splits",
    "--train_splits",
    "--valid_splits",
)


def blocks(page):
    """The code of a page: kind and text; indented blocks are of kind "sh"."""
    text = page.read_text(encoding="utf-8")
    found = []

    def take(match):
        found.append((match.start(), match[1], match[2]))
        return re.sub(r"[^\n]", " ", match[0])

    text = re.sub(r"^```(\w*)\n(.*?)^```$", take, text, flags=re.M | re.S)
    for match in re.finditer(r"(?<=\n\n)(?:(?:    .*)?\n)+", text):
        code = re.sub(r"^    ", "", match[0], flags=re.M)
        found.append((match.start(), "sh", code))
    return [(kind, code) for _, kind, code in sorted(found)]


def snippets(page):
    """Its Python."""
    return [code for kind, code in blocks(page) if kind in ("py", "python")]


def commands(page, folder):
    """What it starts: lists of words."""
    shown = [c for k, c in blocks(page) if k == "sh" and STARTS.search(c)]
    record = folder / "record"
    record.touch()
    subprocess.run(
        ["bash", "-e", "-c", "\n".join([RECORDER, *shown])],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "RECORD": str(record)},
        stdin=subprocess.DEVNULL,
        check=True,
    )
    return list(map(json.loads, record.read_text().splitlines()))


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with what the pages name."""
    folder = tmp_path_factory.mktemp("desk")
    for name in "benchmarks docs hparams recipes tests".split():
        (folder / name).symlink_to(ROOT / name)
    package = "speechbrain_focalcodec"
    (folder / package).symlink_to(ROOT / package)
    for release, case in RELEASES.items():
        (folder / "lucadellalib").mkdir(exist_ok=True)
        (folder / "lucadellalib" / release).symlink_to(PARITY / case)
    (folder / "MODEL").symlink_to(PARITY / "offline_50hz")
    for corpus, splits in CORPORA.items():
        make_corpus(corpus, folder / corpus, splits.split(), 2, 3)
    (folder / "librilight").symlink_to("LibriLight")
    make_corpus("LibriSpeech", folder / "data", ["speech", "speaker"], 1, 2)
    (folder / "speech").mkdir()
    for path in (folder / "data" / "speech").rglob("*.flac"):
        shutil.copy(path, folder / "speech" / path.name)
    for name in ("DATA", "FOLDER", "MY_DATA", "SOURCE", "speaker", "talks"):
        (folder / name).symlink_to("data/speaker")
    sig, rate = soundfile.read(path)
    for name in "clip.wav in.flac in.wav speech.wav voice.wav".split():
        soundfile.write(folder / name, sig, rate)
    entries = {"u1": {"wav": "{data_root}/clip.wav", "duration": 1.5}}
    (folder / "train.json").write_text(json.dumps(entries))
    return folder


@pytest.fixture
def place(desk, tmp_path, monkeypatch):
    """A copy of it to work in."""
    folder = tmp_path / "desk"
    shutil.copytree(desk, folder, symlinks=True)
    monkeypatch.chdir(folder)
    for path in (folder, folder / "benchmarks"):
        monkeypatch.syspath_prepend(path)
    microphone = FakeSoundDevice(torch.zeros(16000))
    monkeypatch.setitem(sys.modules, "sounddevice", microphone)
    return folder


def modules_of(folder, page):
    """Write the modules that a page shows, which begin with their name."""
    rest = []
    for code in snippets(page):
        if name := re.match(r"# (\w+\.py)\n", code):
            (folder / name[1]).write_text(code)
        else:
            rest.append(code)
    return rest


@pytest.mark.parametrize("name", sorted({*PAGES} - {*OTHERS, ONNX}))
def test_snippets_run(place, name):
    """One after the other; those of the README each by itself."""
    make_tokens(place / "tokens")
    names = {"__name__": "page"}
    if name == "README.md":
        models = place / "results"
        trained_asr(models / "asr_an4" / "model")
        trained_tts(models / "tts_small" / "model", speaker_dim=256)
    for code in modules_of(place, PAGES[name]):
        if name == "README.md":
            names = {"__name__": "page"}
        exec(compile(code, name, "exec"), names)


def shorten(words):
    """A command of `focalcodec` for the tests."""
    words = list(words)
    shorter = dict(SHORTER.get(words[0], {}))
    if words[:2] == ["stream", "microphone"]:
        shorter["--duration"] = "0.5"
    for option, value in shorter.items():
        if option in words:
            start = words.index(option)
            del words[start : start + 2]
        if value is not None:
            words += [option, value]
    for i in reversed(range(len(words))):
        if words[i].startswith(OTHER_TOOLS):
            del words[i - 1 : i + 1]
    return words


def parse_focalcodec(words):
    """Whether the command exists and has these options."""
    command = typer.main.get_command(app).commands[words[0]]
    with command.make_context(words[0], list(words[1:])):
        pass


def run_focalcodec(words):
    """Run a command of `focalcodec`, which must end well."""
    words = shorten(words)
    if words[0] in ("convert-voice", "export", "resynthesize", "stream"):
        words.append("--overwrite")  # pages give one name to many outputs
    with pytest.MonkeyPatch.context() as patch:
        clip = io.BytesIO(Path("clip.wav").read_bytes())
        patch.setattr(sys, "stdin", io.TextIOWrapper(clip))
        status = typer.main.get_command(app)(words, standalone_mode=False)
    assert not status, words


@contextlib.contextmanager
def arguments(*words):
    """Words of the command line of a script."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", list(words))
        yield


def check_script(words):
    """Whether the script exists and declares these options."""
    text = (ROOT / words[0]).read_text(encoding="utf-8")
    known = set(re.findall(r'"(--[a-z0-9-]+)"', text))
    # typer makes options of a function's parameters.
    parameters = re.findall(r"^    (\w+): ", text, re.M)
    known |= {f"--{name.replace('_', '-')}" for name in parameters}
    used = {word.partition("=")[0] for word in words if word[:2] == "--"}
    assert used <= known, f"{words[0]} has no {used - known}"


def check_training(words):
    """Whether script and YAML exist and the YAML takes the overrides."""
    assert (ROOT / words[0]).is_file(), words
    path, _, overrides = sb.parse_arguments(words[1:])
    check_overrides(path, parse_overrides(overrides))
    given = "".join(f"{key}: given\n" for key in REQUIRED if key in overrides)
    hparams = read_yaml(Path(path), given)
    assert set(YAML().load(overrides) or {}) <= set(hparams), words


def check_pip(words):
    """Whether an extra exists; from the repository, as PyPI has no copy."""
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    for word in words[1:]:
        (extras,) = re.findall(r"^\.(?:\[(.*)\])?$", word)
        known = set(setup["options.extras_require"])
        assert set(extras.split(",")) - {""} <= known, word


def check_make(words):
    """Whether make knows the target."""
    subprocess.run(
        ["make", "--dry-run", *words], cwd=ROOT, check=True, capture_output=True
    )


def is_trained(word):
    """Whether it names the result of a training."""
    return word.startswith("results/") and not Path(word).exists()


def run_quickly(program, words):
    """Run what takes a moment; check what else the command says."""
    if program == "focalcodec":
        parse_focalcodec(words)
        out = words[words.index("--out") + 1] if "--out" in words else None
        needs = [word for word in words if word != out and is_trained(word)]
        # Nothing trains here, which `export` needs, and ONNX takes minutes.
        if not needs and words[0] not in ("export", "export-onnx"):
            run_focalcodec(words)
    elif program == "make":
        check_make(words)
    elif program == "pip":
        check_pip(words)
    elif "speechbrain_focalcodec.cli" in words:
        parse_focalcodec(words[words.index("speechbrain_focalcodec.cli") + 1 :])
    elif program in ("python", "torchrun"):
        run_script(words)


def run_script(words, row=None):
    """Run a script that is quick, or a training by the flags of a row."""
    if words[0] == "-":
        exec(compile(words[1], "script", "exec"), {"__name__": "page"})
        return
    words = words[next(i for i, w in enumerate(words) if w.endswith(".py")) :]
    if words[0].endswith("/prepare.py"):
        with arguments(*words):
            runpy.run_path(words[0], run_name="__main__")
    elif words[0].startswith("recipes/"):
        check_training(words)
    else:
        check_script(words)


def data_of(name, place):
    """The folder that a page calls DATA_FOLDER."""
    corpus = Path(name).parts[1] if name.startswith("recipes/") else None
    (place / "DATA_FOLDER").symlink_to(corpus or "LibriSpeech")


@pytest.mark.parametrize("name", PAGES)
def test_commands_run(place, name):
    """But for trainings and benchmarks, whose options are checked."""
    modules_of(place, PAGES[name])
    data_of(name, place)
    for block in blocks(PAGES[name]):
        if block[0] == "yaml":
            copied = ROOT / "hparams/downstream/speaker_id.yaml"
            (place / "spotting.yaml").write_text(change_yaml(copied, block[1]))
    for program, *words in commands(PAGES[name], place):
        run_quickly(program, words)


def rows():
    """The table of recipes: flags by script and YAML."""
    found = {}
    for table in sorted((ROOT / "tests" / "recipes").glob("*.csv")):
        with open(table, encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                key = row["Script_file"], row["Hparam_file"]
                found[key] = shlex.split(row["test_debug_flags"])
    return found


def train(words):
    """Run a training by the flags of its row, except for the page's own."""
    script, yaml, *options = words
    flags = [
        flag for flag in rows()[script, yaml] if not flag.startswith(PAGES_OWN)
    ]
    shortened = {flag.partition("=")[0] for flag in flags}
    kept = [
        re.sub(r"^(--num_valid)=[1-9]\d*$", r"\1=2", option)
        for option in options
        if option.partition("=")[0] not in shortened
    ]
    keys = REQUIRED if "/train/" in yaml else REQUIRED[:1]
    given = "".join(f"{key}: given\n" for key in keys)
    if read_yaml(Path(yaml), given)["num_valid"] and not any(
        option.startswith("--num_valid") for option in kept
    ):
        flags.append("--num_valid=2")  # of few utterances
    with arguments(script, yaml, *kept, *flags):
        runpy.run_path(script, run_name="__main__")


# Pages whose trainings follow each other at the size of the table's rows.
TRAINED = [
    f"recipes/{name}/README.md" for name in ("Folder", "LibriLight", "LibriTTS")
]


@pytest.mark.slow
def test_onnx_runs(place):
    """The exports of the page, and the snippets on them."""
    for program, *words in commands(PAGES[ONNX], place):
        if program == "focalcodec":
            run_focalcodec(words)
    names = {"__name__": "page"}
    for code in snippets(PAGES[ONNX]):
        exec(compile(code, ONNX, "exec"), names)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_trainings_run(place, name):
    """All of a page: what is trained above is exported and used below."""
    data_of(name, place)
    for program, *words in commands(PAGES[name], place):
        if program == "focalcodec":
            run_focalcodec(words)
        elif program == "python" and "/train.py" in words[0]:
            train(words)
        else:
            run_quickly(program, words)
