"""What the page on training from tokens shows is run."""

import re
from pathlib import Path

from make_tokens import make_tokens

PAGE = Path(__file__).parents[1] / "docs" / "training_from_tokens.md"


def test_the_page_runs(tmp_path, monkeypatch):
    make_tokens(tmp_path / "my_tokens")
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S))
    names = {"__name__": "page"}
    exec(compile(code, PAGE.name, "exec"), names)
    assert len(names["train"]) + len(names["valid"]) == len(names["short"])
    assert names["loader"].epoch == 3  # once above, twice in fit
    assert names["brain"].optimizer_step > 0
    assert any((tmp_path / "save").glob("CKPT*/loader.ckpt"))
