"""What computes nothing imports neither torch nor timm; and timm knows rst_hub whichever is imported first."""

import ast
import dataclasses
import subprocess
import sys
import time

import pytest
from conftest import ENVIRONMENT, ROOT

import rst_hub
from rst_hub.runs import settings

RECIPES = ("benchmark", "search", "train", "transfer")
SLOWEST = 1.0
"""Seconds that an answer without computing may take more than Python itself."""

PROGRAM = """
import runpy, sys
status = None
try:
    run = runpy.run_path if sys.argv[1].endswith(".py") else runpy.run_module
    del sys.argv[0]
    run(sys.argv[0], run_name="__main__")
except SystemExit as end:
    status = end.code
heavy = sorted({"torch", "timm", "numpy", "accelerate", "datasets", "huggingface_hub"} & set(sys.modules))
print("ended", status, heavy, file=sys.stderr)
"""
COMMAND = "rst_hub.cli"
ANSWERS = {
    (COMMAND, "--help"): "usage: rst-hub [-h] [--version]",
    (COMMAND, "--version"): f"rst-hub {rst_hub.__version__}",
    **{(COMMAND, name, "--help"): f"usage: rst-hub {name}" for name in RECIPES},
    **{(f"recipes/{name}.py", "--help"): f"usage: rst-hub {name}" for name in RECIPES},
    **{(f"rst_hub.runs.{name}", "--help"): f"usage: rst-hub {name}" for name in RECIPES},
}
ERRORS = {
    ("recipes/search.py", "--eps", "300"): "error: --eps 300.0: give a budget",
    ("recipes/search.py", "--config", "absent.toml"): "error: absent.toml cannot be read as TOML",
    (COMMAND, "search", "--epoch", "3"): "Did you mean --epochs",
    (COMMAND, "search", "--remaining-ratio", "2"): "error: remaining ratio 2.0",
    (COMMAND, "train", "--attack", "pdg"): "invalid choice: 'pdg'",
    (COMMAND, "benchmark"): "error: --ticket '': give a name",
    (COMMAND, "benchmark", "--ticket", "x", "--eps", "many"): "error: --eps many: give budgets",
    ("rst_hub.runs.transfer",): "error: --tickets '': give a name",
}


def quick(*words):
    """Return (what a command printed, its errors' lines) in this order, and what it cost."""
    begun = time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], cwd=ROOT, capture_output=True, text=True, env=ENVIRONMENT, check=True
    )
    return process.stdout, process.stderr, time.perf_counter() - begun


@pytest.mark.parametrize("words", [*ANSWERS, *ERRORS], ids=" ".join)
def test_an_answer_without_computing_imports_nothing_heavy(words):
    printed, wrong, _ = quick(*words)
    status = 2 if words in ERRORS else 0
    assert wrong.splitlines()[-1] == f"ended {status} []"
    assert {**ANSWERS, **ERRORS}[words] in (wrong if words in ERRORS else printed)


def test_an_answer_without_computing_takes_less_than_a_second():
    def least(*words):
        return min(quick(*words)[2] for _ in range(3))

    nothing = []
    for _ in range(3):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], env=ENVIRONMENT, check=True)
        nothing.append(time.perf_counter() - begun)
    for words in ((COMMAND, "--help"), ("recipes/search.py", "--help"), ("recipes/search.py", "--eps", "300")):
        assert least(*words) - min(nothing) < SLOWEST, words


def test_every_setting_is_in_one_group_of_the_help_with_its_default():
    names = [name for group in settings.GROUPS.values() for name in group]
    kinds = ("Search", "Train", "Benchmark", "Transfer", "Publish")
    fields = [f for kind in kinds for f in dataclasses.fields(getattr(settings, f"{kind}Settings"))]
    assert sorted(names) == sorted({f.name for f in fields})
    assert len(names) > 50
    said = quick(COMMAND, "search", "--help")[0]
    shown = [title for title in settings.GROUPS if f"\n{title}:\n" in said]
    assert shown == ["data", "network or ticket", "ticket to search", "attack", "optimisation", "run"]
    assert " ".join(said.split()).count("(default: 160; imagenet: 100; digits: 12)") == 1


# timm

FIRST = """
import os, sys, torch, torchvision
for program in sys.argv[1:]:
    child = os.fork()
    if not child:
        status = 1
        try:
            exec(program)
            import timm
            status = 0 if timm.is_model("rst") and timm.is_model("preact_resnet18") else 3
        finally:
            os._exit(status)
    print(program, os.waitpid(child, 0)[1])
"""
"""Runs each program in a process of its own, with torch imported already, and asks timm what it knows."""


def python(program, *arguments):
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=900, check=False)


def check_timm_knows_us(programs):
    process = python(FIRST, *programs)
    assert process.stdout.splitlines() == [f"{program} 0" for program in programs], process.stderr[-3000:]


def test_timm_knows_rst_hub_whichever_is_imported_first():
    check_timm_knows_us(
        [
            "import rst_hub; assert 'timm' not in sys.modules",
            "import timm, rst_hub",
            "import rst_hub; rst_hub.create_model",
            "import rst_hub, importlib.util; importlib.util.find_spec('timm')",
            "import rst_hub.tickets.ticket",
            "import rst_hub.cards.card",
            "import rst_hub.hub.entrypoint",
            "import rst_hub.masks",
        ]
    )


def test_timm_stays_what_it_is():
    process = python(
        "import rst_hub, timm, inspect, sys, importlib.resources\n"
        "assert inspect.getsource(timm).count('import')\n"
        "assert importlib.resources.files('timm').joinpath('__init__.py').is_file()\n"
        "assert not [finder for finder in sys.meta_path if 'rst_hub' in type(finder).__module__]\n"
        "print('same')"
    )
    assert process.stdout == "same\n", process.stderr


@pytest.mark.slow
def test_every_file_can_be_the_first():
    found = [path.relative_to(ROOT).with_suffix("").parts for path in sorted((ROOT / "rst_hub").rglob("*.py"))]
    modules = [".".join(parts).removesuffix(".__init__") for parts in found]
    assert len(modules) > 80
    check_timm_knows_us([f"import {module}" for module in modules])


def test_rooms_that_registering_needs_import_timm_before_their_files():
    for room in ("networks", "masks", "tickets", "cards", "hub"):
        body = ast.parse((ROOT / "rst_hub" / room / "__init__.py").read_text(encoding="utf-8")).body
        first = next(node for node in body if isinstance(node, ast.Import | ast.ImportFrom))
        assert {alias.name for alias in first.names} == {"timm" if room in ("networks", "hub") else "networks"}, room


def test_public_names_are_there_and_others_are_not():
    for name in rst_hub.__all__:
        assert getattr(rst_hub, name).__name__ == name
        assert name in dir(rst_hub)
    assert len(rst_hub.__all__) > 25
    assert rst_hub.tickets.ticket.Ticket is rst_hub.Ticket
    with pytest.raises(AttributeError, match="has no attribute 'from_pretrain'"):
        rst_hub.from_pretrain  # noqa: B018
