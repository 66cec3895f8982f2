"""What is tried before a run writes anything, and what it says of its end."""

import dataclasses
import datetime
import importlib
import shutil

import pytest
import torch
from conftest import run_recipe
from torch import nn

import rst_hub
from rst_hub.data.images import load_images
from rst_hub.errors import RstHubError
from rst_hub.runs import loop as loop
from rst_hub.runs import parsing as parsing
from rst_hub.runs import settings as settings
from rst_hub.runs import start as start_module
from rst_hub.runs import trial as trial
from rst_hub.runs.chance import doubts
from rst_hub.tickets.digests import digest

search_recipe = importlib.import_module("rst_hub.runs.search")
train_recipe = importlib.import_module("rst_hub.runs.train")

SMALL = ("--model", "test_resnet", "--holdout", "60", "--test-samples", "60", "--batch-size", "64")


def refusal(recipe, *arguments):
    with pytest.raises(RstHubError) as caught:
        recipe.main([str(argument) for argument in arguments])
    return str(caught.value)


def test_a_batch_too_small_for_batch_norm_is_refused_before_the_folder(tmp_path):
    said = "cannot be trained on one image of 32 x 32 at once"
    cases = (
        (search_recipe, ("--batch-size", "1")),
        (search_recipe, ("--batch-size", "16", "--accumulation-steps", "16")),
        (train_recipe, ("--batch-size", "1", "--attack", "none")),
    )
    for recipe, more in cases:
        shown = refusal(recipe, *SMALL, "--model", "resnet10t", *more, "--output", tmp_path / "run")
        assert said in shown, more
        assert "raise --batch-size, or lower --accumulation-steps" in shown
        assert "Expected more than 1 value per channel" in shown
        assert not (tmp_path / "run").exists()
    assert len(cases) == 3


def test_two_images_a_batch_are_enough(tmp_path):
    arguments = (*SMALL, "--model", "resnet10t", "--batch-size", "2", "--max-steps", "2", "--output", tmp_path / "run")
    search_recipe.main([str(argument) for argument in arguments])
    assert (tmp_path / "run" / "ticket" / "config.json").exists()


@pytest.mark.parametrize("more", [("--attack", "fgsm-rs"), ("--accumulation-steps", "2", "--loss", "trades")])
def test_the_trial_does_not_move_a_bit(more, tmp_path, monkeypatch):
    tried = []

    def twice(run, network, step=loop._try):
        step(run, network)
        tried.append(step(run, network))

    found = {}
    for name, attempt in {"tried": loop._try, "twice": twice, "not tried": lambda run, network: None}.items():
        monkeypatch.setattr(loop, "_try", attempt)
        output = tmp_path / name
        torch.manual_seed(3)
        search_recipe.main([*SMALL, "--epochs", "1", *more, "--output", str(output)])
        ticket = rst_hub.Ticket.load(output / "ticket")
        state = torch.load(output / "checkpoint.pt", weights_only=True)["state"]
        found[name] = (digest(ticket.masks, ticket.masks), digest(state, state))
    assert len(tried) == 1
    assert len(set(found.values())) == 1


class Odd(nn.Module):
    """Fails in train mode as it is told, and changes buffers, gradients and random numbers before."""

    def __init__(self, error=None):
        super().__init__()
        self.error = error
        self.linear = nn.Linear(3 * 32 * 32, 10)
        self.norm = nn.BatchNorm2d(3)
        self.pretrained_cfg = {"mean": (0, 0, 0), "std": (1, 1, 1), "input_size": (3, 32, 32)}
        self.num_classes = 10

    def forward(self, x):
        if self.training:
            torch.rand(1)
            if self.error is not None:
                self.norm(x)
                raise self.error
        return self.linear(self.norm(x).flatten(1))


@pytest.fixture
def run(tmp_path):

    arguments = [*SMALL, "--output", str(tmp_path / "run")]
    return start_module.start("search", parsing.parse(settings.SearchSettings, arguments, ""))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (None, None),
        (torch.OutOfMemoryError("CUDA out of memory"), "too little memory for a training step"),
        (RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: you tried"), "raise --accumulation-steps"),
        (KeyError("drop"), "test_resnet cannot be trained on 64 images of 32 x 32"),
    ],
)
def test_whatever_a_model_raises_in_train_mode_is_ours_and_leaves_it_as_it_was(run, error, message):
    network = rst_hub.PixelModel(Odd(error)).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    numbers = torch.get_rng_state()
    if message is None:
        loop._try(run, network)
    else:
        with pytest.raises(RstHubError, match=message):
            loop._try(run, network)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), numbers)
    assert not any(module.training for module in network.modules())


def test_compile_without_a_compiler_is_ours(run):
    network = rst_hub.PixelModel(Odd()).eval()
    compiled = dataclasses.replace(run, settings=dataclasses.replace(run.settings, compile=True))
    with (
        torch._inductor.config.patch({"cpp.cxx": ("/nowhere/g++",), "force_disable_caches": True}),
        pytest.raises(RstHubError, match=r"cannot compile a training step of test_resnet here .*: leave --compile out"),
    ):
        loop._try(compiled, network)


@pytest.mark.slow
def test_compile_without_a_compiler_is_one_line_before_the_folder(tmp_path):
    arguments = (*SMALL, "--epochs", "1", "--compile", "--output", tmp_path / "run")
    elsewhere = {
        "PATH": str(tmp_path),
        "CXX": str(tmp_path / "g++"),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
    }
    process = run_recipe("search.py", *arguments, check=False, **elsewhere)
    assert process.returncode == 2
    assert "error: torch.compile cannot compile a training step of test_resnet here" in process.stderr
    assert "leave --compile out, or install what is missing" in process.stderr
    assert process.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


# The expected end


def test_the_expected_end_is_said_once_after_the_first_epoch(image_folder, tmp_path, capsys):
    tiny = ["--model", "test_resnet", "--dataset", str(image_folder), "--image-size", "16", "--holdout", "8"]
    tiny += ["--test-samples", "8", "--batch-size", "12", "--steps", "2"]

    def said(*more):
        search_recipe.main([*tiny, *more])
        return [line for line in capsys.readouterr().out.splitlines() if " left" in line and "until" in line]

    (line,) = said("--epochs", "3", "--output", str(tmp_path / "three"))
    assert line.startswith("about ")
    assert said("--epochs", "1", "--output", str(tmp_path / "one")) == []
    assert said("--epochs", "9", "--max-steps", "2", "--output", str(tmp_path / "trial")) == []  # two steps an epoch
    of_set = said("--epochs", "2", "--remaining-ratios", "0.1,0.3", "--output", str(tmp_path / "set"))
    assert [line.partition(", until")[0].split(" left")[1] for line in of_set] == [" for the whole set"] * 2
    shutil.rmtree(tmp_path / "three" / "ticket")
    assert said("--epochs", "3", "--output", str(tmp_path / "three"), "--resume") == []  # nothing is before it


def test_the_expected_end_in_words():
    noon = datetime.datetime(2026, 3, 1, 12, 0)
    assert trial._until(42, noon) == "about 42 s left, until 12:00"
    assert trial._until(12 * 60 + 5, noon) == "about 12 min left, until 12:12"
    assert trial._until(3 * 3600, noon) == "about 3.0 h left, until 15:00"
    assert trial._until(15 * 3600, noon, " for the whole set") == (
        "about 15.0 h left for the whole set, until 2026-03-02 03:00"
    )


# A result at chance


def results(clean, robust, samples):
    return {"clean_accuracy": clean, "robust_accuracy": robust, "samples": samples}


def test_a_result_at_chance_is_said_with_what_to_try(run):
    chance = 100 * float(run.test.labels.bincount().max()) / len(run.test)
    assert 10 < chance < 25
    assert doubts(run, {"": results(90, 60, 500)}) == []
    (nothing,) = doubts(run, {"": results(chance, chance, 500)})
    assert nothing.startswith(f"clean accuracy is not above chance, which is {chance:.2f} % on these test images")
    for word in ("--optimizer adamw (for ViTs, mixers and ConvNeXts)", "--remaining-ratio", "--epochs", "--lr"):
        assert word in nothing
    (below,) = doubts(run, {"": results(0, 0, 500)})
    assert below == nothing
    (fooled,) = doubts(run, {"": results(90, 3, 500)})
    assert fooled.startswith("PGD-20 accuracy is not above chance")
    assert "while clean accuracy is above it" in fooled
    (little,) = doubts(run, {"": results(chance + 3, chance + 3, 60)})  # above it, by less than the sampling error
    assert little == nothing
    both = doubts(run, {"5%": results(10, 10, 500), "10%": results(90, 3, 500), "20%": results(90, 60, 500)})
    assert [line.split("accuracy")[0] for line in both] == ["5%: clean ", "10%: PGD-20 "]


def test_a_search_and_a_training_at_chance_say_so(tmp_path, capsys):
    for recipe, more in ((search_recipe, ()), (train_recipe, ())):
        arguments = [*SMALL, "--lr", "1e-12", "--epochs", "1", *more]
        recipe.main([*arguments, "--output", str(tmp_path / recipe.__name__)])
        said = capsys.readouterr().out
        assert "clean accuracy is not above chance, which is" in said
        assert ("--remaining-ratio" in said.partition("above chance")[2]) == (recipe is search_recipe)
    arguments = [*SMALL, "--lr", "1e-12", "--epochs", "1", "--remaining-ratios", "0.1,0.3"]
    search_recipe.main([*arguments, "--output", str(tmp_path / "set")])
    assert "10%, 30%: clean accuracy is not above chance" in capsys.readouterr().out


def test_chance_is_the_largest_class(run):
    test = load_images("digits", "test")
    few = torch.cat([torch.nonzero(test.labels == 3)[:30], torch.nonzero(test.labels != 3)[:10]]).flatten()
    lopsided = dataclasses.replace(run, test=test.subset(few))
    (said,) = doubts(lopsided, {"": results(75, 75, 400)})
    assert "not above chance, which is 75.00 %" in said
