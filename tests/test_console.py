import ast
import io
import os
import subprocess
import sys

import hub_server
import numpy as np
import pytest
from conftest import ENVIRONMENT, ROOT
from hub_server import add_commit
from PIL import Image

from rst_hub.console import print_anything

TERMINALS = {
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "C": {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"},
    "utf-8": {"PYTHONIOENCODING": "utf-8"},
}
NAMES = {"chosen": "donn\u00e9es-\u6570\u636e", "no UTF-8": "donn\udce9es"}


def run(arguments, terminal, cwd, **environment):
    """Run Python and return (status, stdout, stderr), which must hold no error of an encoding."""
    found = subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", *map(str, arguments)],
        env={**ENVIRONMENT, "OMP_NUM_THREADS": "1", **TERMINALS[terminal], **environment},
        cwd=cwd,
        capture_output=True,
        check=False,
        timeout=280,
    )
    said = (found.stdout + found.stderr).decode(errors="replace")
    assert "UnicodeEncodeError" not in said, said
    assert "Traceback" not in said, said
    for line in said.splitlines():
        assert "EncodingWarning" not in line or "site-packages" in line, line
    return found.returncode, found.stdout.decode(errors="replace"), found.stderr.decode(errors="replace")


def test_streams_of_any_encoding_take_any_text_and_others_are_left_alone(monkeypatch):
    bytes_of = {}
    for encoding in ("cp1252", "ascii", "utf-8", "utf-16-le"):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, write_through=True))
        monkeypatch.setattr(sys, "stderr", io.StringIO())  # as a notebook's, which knows no encoding
        print_anything()
        sys.stdout.write("\u00e9\u6570\udce9")
        sys.stderr.write("\u6570\udce9")
        bytes_of[encoding] = raw.getvalue()
    assert bytes_of == {
        "cp1252": b"\xe9\\u6570\\udce9",
        "ascii": b"\\xe9\\u6570\\udce9",
        "utf-8": "\u00e9\u6570\\udce9".encode(),
        "utf-16-le": "\u00e9\u6570\\udce9".encode("utf-16-le"),
    }
    monkeypatch.setattr(sys, "stdout", None)  # as under pythonw
    print_anything()


COMMANDS = """
import json, sys
from rst_hub.cli import main
home, dense = sys.argv[1], sys.argv[1] + "-dense"
commands = [
    ["info", home], ["verify", home], ["card", home], ["export", home, "--to", "safetensors", "--output", dense],
    ["push", home, "org/rst-x", "--dry-run"], ["push", home, "org/rst-x"], ["push", home, "org/rst-x"],
    ["info", "org/rst-x"], ["list"], ["list", "--search", "rst"],
    ["info", home + "/absent"], ["verify", home + "/absent"], ["card", home + "/absent"], ["push", home, home],
    ["export", home, "--to", "safetensors", "--output", dense], ["info", "org/" + dense], ["info", "org/absent"],
]
print([main(command) for command in commands])
"""


@pytest.mark.parametrize(
    ("terminal", "name"),
    [("cp1252", NAMES["chosen"]), ("ascii", NAMES["no UTF-8"]), ("C", NAMES["chosen"]), ("utf-8", NAMES["no UTF-8"])],
    ids=lambda value: ascii(value),
)
def test_every_command_prints_on_every_terminal(folder, tmp_path, terminal, name):
    if sys.platform == "darwin" and "\udce9" in name:
        pytest.skip("no such names on this system")
    hub_server.reset()
    (folder / "README.md").write_text(
        "---\nlibrary_name: rst-hub\nrst: {architecture: donn\u00e9es-\u6570}\n---\n", "utf-8"
    )
    add_commit("org/rst-y", folder)
    (folder / "README.md").unlink()
    folder.rename(tmp_path / name)
    online = {"HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_writer", "HF_HUB_CACHE": str(tmp_path / "cache")}
    program = tmp_path / "program.py"
    program.write_text(COMMANDS, encoding="utf-8")
    status, said, wrong = run([program, name], terminal, tmp_path, **online)
    hub_server.reset()
    assert status == 0, wrong
    assert said.splitlines()[-1] == str([0] * 10 + [2] * 7)
    assert wrong.count("error: ") == 7
    assert said.count("verified: 1 of 1 tickets") == 1
    shown = {"cp1252": "donn\ufffdes-\\u6570\\u636e", "ascii": "donn\\xe9es-\\u6570\\u636e", "utf-8": NAMES["chosen"]}
    if name == NAMES["chosen"] and terminal in shown:
        assert f"published {shown[terminal]}: " in said
    assert os.path.isdir(tmp_path / f"{name}-dense")


@pytest.mark.slow
def test_a_recipe_prints_and_draws_its_bars_on_every_terminal(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for number, label in enumerate(("\u00e9t\u00e9", "\u6570")):
            place = tmp_path / NAMES["chosen"] / split / label
            place.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 60, (16, 16, 3), dtype=np.uint8)
                pixels[..., number] += 150
                Image.fromarray(pixels).save(place / f"{i}.png")
    search = [ROOT / "recipes" / "search.py", "--dataset", NAMES["chosen"], "--model", "test_resnet", "--epochs", "1"]
    options = ["--batch-size", "8", "--holdout", "4", "--image-size", "32", "--output", f"runs/{NAMES['chosen']}"]
    status, said, wrong = run([*search, *options], "cp1252", tmp_path)
    assert status == 0, wrong
    assert "clean accuracy" in said
    assert "epoch 1" in wrong
    status, _, wrong = run([*search, "--config", NAMES["no UTF-8"] + ".toml"], "ascii", tmp_path)
    assert status == 2
    assert wrong.splitlines()[-1].startswith("error: donn?es.toml cannot be read as TOML")


def test_every_file_is_opened_in_an_encoding_that_is_given():
    looked, missing = 0, []
    for path in (path for part in ("rst_hub", "recipes", "benchmarks") for path in (ROOT / part).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            words = {word.arg for word in node.keywords}
            modes = [value.value for value in node.args if isinstance(value, ast.Constant)]
            of_image = isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") in ("Image", "os")
            in_text = name == "open" and not of_image and not any("b" in str(mode) for mode in modes)
            looked += name in ("open", "read_text", "write_text")
            if (name in ("read_text", "write_text") or in_text) and "encoding" not in words:
                missing.append(f"{path.name}:{node.lineno}")
            if "text" in words or "universal_newlines" in words:
                missing.append(f"{path.name}:{node.lineno}")
    assert missing == []
    assert looked > 20


def test_every_program_prints_anything_that_prints_names_from_elsewhere():
    programs = [path for part in ("recipes", "benchmarks") for path in sorted((ROOT / part).glob("*.py"))]
    unsafe = []
    for path in programs:
        text = path.read_text(encoding="utf-8")
        if "__main__" in text and "main_of(" not in text and "leave(" not in text and "print_anything()" not in text:
            unsafe.append(path.stem)
    # which print numbers and the names of their own cases, all in ascii
    assert unsafe == [
        "bits",
        "evaluation",
        "imports",
        "integrity",
        "load",
        "precision",
        "rooms",
        "search_step",
        "weights",
    ]
