"""The notebooks of examples/ run from top to bottom, and say what they said when they were written."""

import contextlib
import io
import json
import re

import matplotlib.pyplot
import pytest
import torch
from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def cells(notebook):
    """Return (source, what it printed) of each cell of code."""
    found = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in found if cell["cell_type"] == "code"]
    streams = [[out for out in cell["outputs"] if out["output_type"] == "stream"] for cell in code]
    printed = ["".join("".join(out["text"]) for out in outputs) for outputs in streams]
    return [("".join(cell["source"]), text) for cell, text in zip(code, printed, strict=True)]


def words(text):
    """Return what is printed without its numbers, which another processor rounds otherwise."""
    return re.sub(r"[\d.,]+", "#", text)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_prints_what_it_shows(notebook, monkeypatch, tmp_path):
    matplotlib.use("agg")
    monkeypatch.chdir(ROOT / "examples")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    torch.manual_seed(0)
    space, printed = {}, ""
    for number, (source, shown) in enumerate(cells(notebook)):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(source, f"{notebook.name}, cell {number}", "exec"), space)
        assert words(said.getvalue()) == words(shown)
        printed += said.getvalue()
    matplotlib.pyplot.close("all")
    accuracies = [float(number) for number in re.findall(r"robust accuracy +([\d.]+)%", printed)]
    assert max(accuracies) > 50
    assert len(cells(notebook)) >= 5


def test_there_are_two():
    assert [path.name for path in NOTEBOOKS] == ["load_and_attack.ipynb", "search.ipynb"]
