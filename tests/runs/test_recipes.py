import collections
import dataclasses
import functools
import importlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import published
import pytest
import torch
from accelerate import Accelerator
from conftest import ENVIRONMENT, ROOT, launch, make_popup, run_recipe
from search_step import accelerator_of
from torch.utils._python_dispatch import TorchDispatchMode

import rst_hub
from rst_hub.cards.own import LIFTS
from rst_hub.errors import RstHubError, SettingsError
from rst_hub.networks.dense import load_dense
from rst_hub.runs import folder as folder_module
from rst_hub.runs import loop as loop
from rst_hub.runs import naming as naming
from rst_hub.runs import parsing as parsing
from rst_hub.runs import settings as settings
from rst_hub.runs import start as run_module
from rst_hub.runs import start as start_module
from rst_hub.tickets.digests import digest
from rst_hub.tickets.ticket import ticket_names

search_recipe = importlib.import_module("rst_hub.runs.search")

SMALL = ("--model", "test_resnet", "--holdout", "60", "--test-samples", "60", "--batch-size", "64")


def refusal(*arguments):
    """Return what a search of this process is refused with."""
    with pytest.raises(RstHubError) as caught:
        search_recipe.main([str(argument) for argument in arguments])
    return str(caught.value)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def learned(folder):
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["state"]
    return {name: tensor for name, tensor in state.items() if name.startswith("learned.")}


# The command line


def parse(*arguments, kind=settings.SearchSettings):
    return parsing.parse(kind, [str(a) for a in arguments], "")


def test_the_defaults_are_the_papers():
    s = parse("--dataset", "some/cifar10")
    assert (s.model, s.attack, s.steps, s.step_size, s.eps) == ("preact_resnet18", "pgd", 7, None, 8)
    assert (s.epochs, s.batch_size, s.lr, s.momentum, s.weight_decay) == (160, 256, 0.1, 0.9, 5e-4)
    rates = [loop.learning_rate(s, epoch) for epoch in (0, 79, 80, 119, 120, 159)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert (s.augment, s.distribution, s.pattern) == ("cifar", "signed_kaiming_constant", "element")


def test_the_imagenet_preset_is_the_papers():
    s = parse("--preset", "imagenet", "--dataset", "some/imagenet")
    assert (s.attack, s.epochs, s.lr, s.schedule, s.warmup_epochs) == ("fgsm-rs", 100, 0.256, "cosine", 5)
    assert (s.momentum, s.weight_decay, s.batch_size, s.augment, s.image_size) == (0.875, 3.05e-5, 256, "imagenet", 224)
    rates = [loop.learning_rate(s, epoch) for epoch in (0, 4, 5, 99)]
    assert rates[:3] == pytest.approx([0.256 / 5, 0.256, 0.256])
    assert 0 < rates[3] < 1e-3


def test_the_command_line_wins_over_the_file_and_the_file_over_the_preset(tmp_path):
    file = tmp_path / "row.toml"
    file.write_text('dataset = "digits"\nepochs = 3\nlr = 1\neps = 4.5\nresume = true\n')
    s = parse("--config", file, "--lr", "0.5")
    assert (s.epochs, s.lr, s.eps, s.resume, s.model, s.remaining_ratio) == (3, 0.5, 4.5, True, "resnet10t", 0.1)
    assert parse("--config", file, kind=settings.TrainSettings).attack == "fgsm-rs"
    assert parse("--attack", "none", kind=settings.TrainSettings).attack == "none"


def test_adamw_has_its_own_rate_unless_one_is_given(tmp_path):
    assert parse("--optimizer", "adamw").lr == 0.001
    assert parse("--optimizer", "adamw", "--preset", "imagenet", "--dataset", "some/set").lr == 0.001
    assert parse("--optimizer", "adamw", "--lr", "0.02").lr == 0.02
    (tmp_path / "row.toml").write_text('optimizer = "adamw"')
    assert parse("--config", tmp_path / "row.toml").lr == 0.001
    assert parse("--config", tmp_path / "row.toml", "--optimizer", "sgd").lr == 0.1
    tensor = torch.nn.Parameter(torch.ones(1))
    optimizer = loop.make_optimizer(parse("--optimizer", "adamw"), {"a": tensor})
    assert (type(optimizer), optimizer.defaults["lr"]) == (torch.optim.AdamW, 0.001)
    tensor.grad = torch.full((1,), 1e-12)  # a gradient however small moves its score by the rate
    optimizer.step()
    assert float(tensor.detach()) == pytest.approx(0.999, abs=1e-5)


def test_unknown_and_wrong_settings_name_the_right_ones(tmp_path):
    cases = {
        ("--epoch", "3"): "'--epoch' is not known. Did you mean --epochs",
        ("--remaining-ration=0.1",): "Did you mean --remaining-ratio",
        ("--attack", "pdg"): "invalid choice: 'pdg'",
        ("--epochs", "many"): "invalid int value",
        ("--remaining-ratio", "0"): "remaining ratio 0.0",
        ("--remaining-ratio", "1.5"): "remaining ratio 1.5",
        ("--eps", "-1"): "--eps -1.0: give 0 or more",
        ("--eps", "nan"): "--eps nan: give 0 or more",
        ("--eps", "300"): "at most 255",
        ("--lr", "0"): "--lr 0.0: give a number above 0",
        ("--seed", "-1"): "--seed -1",
        ("--warmup-epochs", "5", "--schedule", "step"): "goes with --schedule cosine",
        ("--loss", "trades", "--attack", "fgsm"): "goes with --attack pgd or fgsm-rs, not fgsm",
        ("--climb", "0.01", "--accumulation-steps", "2"): "one accumulation step",
        ("--climb", "1"): "give a share below 1",
        ("--ema", "1"): "give a decay below 1",
        ("--trades-beta", "3"): "--trades-beta 3.0 goes with --loss trades",
        ("--trades-beta", "-1"): "--trades-beta -1.0: give 0 or more",
        ("--distribution", "normal"): "invalid choice",
        ("--score-seed", "-1"): "--score-seed -1",
        ("--momentum", "1"): "give a share below 1",
        ("--lr", "inf"): "--lr inf",
        ("--attack", "fgsm", "--step-size", "2"): "fgsm has no step of its own",
        ("--remaining-ratios", "0.1,0.3", "--remaining-ratio", "0.1"): "--remaining-ratios for a set, not both",
        ("--remaining-ratios", "0.1,few"): "--remaining-ratios '0.1,few': give shares of weights to keep, with commas",
        ("--remaining-ratios", "0.1,,0.3"): "give shares of weights to keep",
        ("--remaining-ratios", ""): "give shares of weights to keep",
        ("--remaining-ratios", "0.1,0"): "remaining ratio 0.0",
        ("--remaining-ratios", "0.1,nan"): "remaining ratio nan",
        ("--remaining-ratios", "0.1,0.3,0.10"): "0.1 is there twice",
        ("--remaining-ratios", "0.1,0.10000001"): "0.1 is there twice",
    }
    for arguments, message in cases.items():
        with pytest.raises(SettingsError) as caught:
            parse(*arguments)
        assert message in str(caught.value), arguments
    files = {
        "epoch = 3": "'epoch' is not known. Did you mean epochs",
        'epochs = "3"': "epochs = '3' must be of type int",
        "resume = 1": "resume = 1 must be of type bool",
        'attack = "pdg"': "must be one of pgd, fgsm, fgsm-rs",
        "epochs =": "cannot be read as TOML",
        'preset = "digit"': "Did you mean digits",
        "preset = 3": "preset 3 is not known",
        f"eps = {10**400}": "must be of type float",
        'remaining_ratio = 0.1\nremaining_ratios = "0.1,0.3"': "for a set, not both",
    }
    for text, message in files.items():
        (tmp_path / "row.toml").write_text(text)
        with pytest.raises(SettingsError) as caught:
            parse("--config", tmp_path / "row.toml")
        assert message in str(caught.value), text
    with pytest.raises(SettingsError, match="cannot be read"):
        parse("--config", tmp_path / "absent.toml")


def test_a_command_says_nothing_of_this_machine(tmp_path):
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "a.toml").write_text("lr = 0.5")
    somewhere = ("--dataset", tmp_path / "cifar10", "--compile", "--output=/home/me/run", "--resume")
    given = parse(*somewhere, "--config", tmp_path / "a.toml")
    assert naming.command("search", given) == "rst-hub search --dataset cifar10 --lr 0.5 --compile"
    launched = naming.command("search", given, "bf16", 2)
    assert launched == (
        "accelerate launch --mixed_precision bf16 --num_processes 2 -m rst_hub.runs.search --dataset cifar10 --lr 0.5 "
        "--compile"
    )
    measured = settings.BenchmarkSettings(ticket="../x/ticket", dataset=f"{tmp_path}/cifar10", output="/a", resume=True)
    assert naming.command("benchmark", measured) == "rst-hub benchmark --dataset cifar10 --ticket ticket"
    several = settings.TransferSettings(tickets=f"model_cards/a,{tmp_path}/b,org/c,resnet18.a1_in1k")
    expected = "rst-hub transfer --tickets model_cards/a,b,org/c,resnet18.a1_in1k"
    assert naming.command("transfer", several) == expected
    (tmp_path / "digits").mkdir()
    own = parse("--dataset", tmp_path / "digits")  # a folder of that name is not the data set of that name
    assert naming.command("search", own) == "rst-hub search --dataset ./digits"


def test_a_command_is_the_settings_however_they_came_about(monkeypatch):
    monkeypatch.setattr("sys.argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    search, train = settings.SearchSettings, settings.TrainSettings
    cases = {
        "rst-hub search": parse(),
        "rst-hub search --preset cifar": search(),
        "rst-hub search --epochs 3": parse("--preset", "digits", "--epochs", "3"),
        "rst-hub search --remaining-ratios 0.1,0.3": parse("--remaining-ratios", "0.1,0.3"),
        "rst-hub search --preset imagenet --dataset a/b": parse("--preset", "imagenet", "--dataset", "a/b"),
        "rst-hub search --preset imagenet --dataset a/b --compile": settings.preset(
            search, "imagenet", dataset="a/b", compile=True
        ),
        "rst-hub search --dataset a/b --optimizer adamw": parse("--optimizer", "adamw", "--dataset", "a/b"),
        "rst-hub search --dataset a/b --optimizer adamw --lr 0.1": search(dataset="a/b", optimizer="adamw"),
        "rst-hub search --dataset=-x --image-size 8": search(dataset="-x", image_size=8),
        "rst-hub search --dataset 'a b,c' --dataset-name ''": search(dataset="a b,c", dataset_name=""),
        "rst-hub train --attack none": parse("--attack", "none", kind=train),
        "rst-hub train --eps 0.5/255": parse("--eps", "0.5/255", kind=train),
        "rst-hub train --lr 1e-05": parse("--lr", "1e-5", kind=train),
        "rst-hub benchmark --norm L2 --ticket x --eps 4,8": settings.BenchmarkSettings(
            ticket="x", norm="L2", eps="4,8"
        ),
        "rst-hub transfer --tickets x --paper-protocol": settings.TransferSettings(tickets="x", paper_protocol=True),
    }
    for expected, given in cases.items():
        _, recipe, *words = shlex.split(expected)
        assert naming.command(recipe, given) == expected
        if given.dataset_name != "":  # which is refused
            assert parsing.parse(type(given), words, "") == given
    assert len(cases) == 15


def test_what_results_take_for_no_option_is_the_recipes_default():
    assert {key: getattr(settings.SearchSettings, key) for key in LIFTS} == LIFTS


# One step, beside the published formulation

ATTACKS = {
    "pgd": settings.SearchSettings(attack="pgd", steps=3),
    "fgsm-rs": settings.SearchSettings(attack="fgsm-rs"),
    "none": settings.SearchSettings(attack="none"),
}


def random_batches(count=4, device="cpu"):
    """Return batches of eight random images."""
    noise = torch.Generator().manual_seed(0)
    pairs = [
        (torch.rand(8, 3, 32, 32, generator=noise), torch.randint(10, (8,), generator=noise)) for _ in range(count)
    ]
    return [(x.to(device), y.to(device)) for x, y in pairs]


def searcher(popup, attack, precision="fp32", backend=None):
    """Return what takes a search step on a batch, by the recipes' loop."""
    device = next(popup.model.parameters()).device
    accelerator = accelerator_of(precision, device)
    network = rst_hub.PixelModel(popup.model)
    if backend:
        network.compile(backend=backend)
    network = accelerator.prepare_model(network).train()
    optimizer = accelerator.prepare_optimizer(loop.make_optimizer(ATTACKS[attack], popup.scores))
    attacked = loop.make_attack(ATTACKS[attack], torch.Generator(device).manual_seed(0))
    if backend:
        attacked = functools.partial(loop._with_frozen_weights, attacked)
    learner = loop.Learner(popup.model, popup.scores, popup.collect_gradients, popup.apply)
    return functools.partial(loop.step, accelerator, learner, network, optimizer, attacked)


def published_scores(popup, attack):
    """Return the scores after the published formulation's steps, from those of ``popup``, and its buffers."""
    chosen = ATTACKS[attack]
    network = published.Published(rst_hub.PixelModel(popup.model), popup).train()
    optimizer = loop.make_optimizer(chosen, network.scores)
    steps, size = (chosen.steps, 2 / 255) if attack == "pgd" else (1, 10 / 255)
    noise = torch.Generator().manual_seed(0)
    for x, y in random_batches():
        x_adv = published.attacked(network, x, y, rst_hub.ThreatModel(), steps=steps, step_size=size, generator=noise)
        published.step(network, optimizer, x_adv, y)
    return {name.removeprefix("model."): scores for name, scores in network.scores.items()}, dict(
        network.network.model.named_buffers()
    )


@pytest.mark.usefixtures("_own_precision")
@pytest.mark.parametrize("attack", ["pgd", "fgsm-rs"])
def test_a_search_is_the_published_one_bit_for_bit(attack):
    popup = make_popup()
    before, (expected, buffers) = popup.masks(), published_scores(popup, attack)
    take = searcher(popup, attack)
    for x, y in random_batches():
        take(x, y)
    assert len(expected) > 10
    for name, scores in popup.scores.items():
        assert torch.equal(scores, expected[name]), name
        kept = int(before[name].sum())
        assert torch.equal(popup.masks()[name], published.sorted_mask(expected[name].abs(), kept)), name
    assert any(not torch.equal(mask, before[name]) for name, mask in popup.masks().items())
    assert len(buffers) > 20
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in popup.model.named_buffers())


@pytest.mark.usefixtures("_own_precision")
def test_channels_last_changes_hardly_a_mask():
    reference = make_popup()
    before, (expected, _) = reference.masks(), published_scores(reference, "fgsm-rs")
    popup = rst_hub.EdgePopup(make_popup().model.to(memory_format=torch.channels_last), rst_hub.Init(0), 0.1)
    take = searcher(popup, "fgsm-rs")
    for x, y in random_batches():
        take(x.to(memory_format=torch.channels_last), y)
    flags = {
        name: (mask, published.sorted_mask(expected[name].abs(), int(mask.sum())))
        for name, mask in popup.masks().items()
    }
    moved = sum(int((mask != before[name]).sum()) for name, (mask, _) in flags.items())
    differ = sum(int((mask != other).sum()) for mask, other in flags.values())
    assert moved > 1000
    assert differ < 0.01 * moved  # of additions in another order


@pytest.mark.usefixtures("_own_precision")
@pytest.mark.parametrize(("architecture", "tolerance"), [("test_vit", 0.02), ("test_resnet", 0.4)])
def test_bf16_moves_the_scores_nearly_as_fp32_does(architecture, tolerance):
    # Batch norm divides by what varies within a batch, and magnifies the rounding of the weights and maps before it.
    moves = []
    for precision in ("fp32", "bf16"):
        popup = make_popup(architecture, **({"img_size": 32} if architecture == "test_vit" else {}))
        before = torch.cat([scores.detach().flatten() for scores in popup.scores.values()])
        searcher(popup, "none", precision)(*random_batches(1)[0])
        moves.append(torch.cat([scores.detach().flatten() for scores in popup.scores.values()]) - before)
    assert 0 < float((moves[0] - moves[1]).norm()) < tolerance * float(moves[0].norm())


class Casts(TorchDispatchMode):
    """Counts casts to bf16 by the shape of what is cast."""

    def __init__(self):
        super().__init__()
        self.count = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and kwargs["dtype"] == torch.bfloat16:
            self.count[tuple(args[0].shape)] += 1
        return func(*args, **kwargs or {})


@pytest.mark.usefixtures("_own_precision")
def test_bf16_casts_a_weight_once_a_step():
    popup = make_popup()
    take = searcher(popup, "pgd", "bf16")
    ((x, y),) = random_batches(1)
    with Casts() as casts:
        take(x, y)
    weights = collections.Counter(tuple(scores.shape) for scores in popup.scores.values())
    assert len(weights) > 5
    assert {shape: casts.count[shape] for shape in weights} == dict(weights)


@pytest.mark.usefixtures("_own_precision")
@pytest.mark.slow
def test_a_compiled_network_takes_the_same_steps():
    plain, compiled = make_popup(), make_popup()
    names = list(compiled.model.state_dict())
    steps = searcher(plain, "pgd"), searcher(compiled, "pgd", backend="aot_eager")  # inductor adds in another order
    for x, y in random_batches(3):
        assert torch.equal(*(take(x, y) for take in steps))
    assert list(compiled.model.state_dict()) == names
    assert all(torch.equal(plain.scores[name], compiled.scores[name]) for name in plain.scores)
    assert all(parameter.requires_grad for parameter in compiled.parameters.values())


@pytest.mark.usefixtures("_own_precision")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_step_waits_for_the_gpu(precision):
    model = make_popup().model.to("cuda", memory_format=torch.channels_last)
    popup = rst_hub.EdgePopup(model, rst_hub.Init(0), 0.1)
    take = searcher(popup, "pgd", precision)
    (x, y), *others = [(x.to(memory_format=torch.channels_last), y) for x, y in random_batches(3, "cuda")]
    take(x, y)  # the first step allocates
    torch.cuda.set_sync_debug_mode("error")
    try:
        for x, y in others:
            take(x, y)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for name, mask in popup.masks().items():
        assert torch.equal(mask.cpu(), published.sorted_mask(popup.scores[name].abs().cpu(), int(mask.sum()))), name


# Searches, in processes of their own


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "search"
    return folder, run_recipe("search.py", *SMALL, "--epochs", "3", "--output", folder)


def test_a_search_ends_with_a_ticket_and_its_numbers(search):
    folder, process = search
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint.pt",
        "metrics.jsonl",
        "settings.json",
        "ticket",
    ]
    ticket = rst_hub.Ticket.load(folder / "ticket")
    ticket.verify()
    results = ticket.provenance["results"]
    size = sum(path.stat().st_size for path in (folder / "ticket").iterdir())
    shown = process.stdout
    assert f"clean accuracy    {results['clean_accuracy']:.2f} %" in shown
    assert f"PGD-20 accuracy   {results['robust_accuracy']:.2f} %" in shown
    assert f"{size:,} bytes" in shown
    assert f'rst_hub.from_pretrained("{folder / "ticket"}")' in shown
    assert results["samples"] == 60
    assert ticket.provenance["dataset"] == {"name": "digits", "training_samples": 1237, "heldout_samples": 60}
    assert ticket.provenance["versions"]["torch"] == torch.__version__
    assert [line["epoch"] for line in lines(folder)] == [1, 2, 3]
    best = max(lines(folder), key=lambda line: (line["pgd20"], line["clean"], -line["epoch"]))
    assert ticket.provenance["epoch"] == best["epoch"]
    assert "Warning" not in process.stderr


def test_the_numbers_come_again_from_the_saved_ticket(search):
    from rst_hub.data.images import load_images
    from rst_hub.data.loader import evaluation_batches
    from rst_hub.data.order import permutation

    folder, _ = search
    test = load_images("digits", "test")
    test = test.subset(permutation("test", 0, 0, len(test))[:60])
    batches = [(x, y) for _, x, y in evaluation_batches(test, 100, image_size=32)]
    model = rst_hub.PixelModel(rst_hub.from_pretrained(folder / "ticket"))
    results = rst_hub.Ticket.load(folder / "ticket").provenance["results"]
    assert rst_hub.clean_accuracy(model, batches) == pytest.approx(results["clean_accuracy"], abs=100 / 60)
    attack = functools.partial(
        rst_hub.pgd, threat_model=rst_hub.ThreatModel(), generator=torch.Generator().manual_seed(0)
    )
    assert rst_hub.robust_accuracy(model, batches, attack) == pytest.approx(results["robust_accuracy"], abs=200 / 60)


def test_a_finished_or_foreign_folder_is_left_alone(search, tmp_path):
    folder, _ = search
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "a.tex").write_text("a")
    cases = (
        (folder, (), "already holds a run: add --resume"),
        (folder, ("--resume",), "so this search has ended"),
        (folder, ("--resume", "--lr", "0.3"), "lr was 0.1, is 0.3"),
        (tmp_path / "thesis", (), "holds something else than a run"),
    )
    for output, more, message in cases:
        before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
        assert message in refusal(*SMALL, "--epochs", "3", "--output", output, *more)
        assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


def test_bad_input_is_one_line_before_anything_is_written(tmp_path, image_folder):
    cases = (
        (("--model", "resnet81"), "no architecture 'resnet81'. Did you mean resnet18"),
        (("--model", "hf-hub:timm/resnet18"), "no architecture 'hf-hub:timm/resnet18'. Did you mean resnet18"),
        (("--dataset", str(tmp_path)), "cannot be read as images with labels"),
        (("--dataset", str(image_folder), "--holdout", "36"), "cannot hold out 36 of 36"),
        (("--batch-size", "7", "--accumulation-steps", "2"), "no multiple of 2"),
        (("--model", "test_vit", "--image-size", "30"), "test_vit cannot take images of 30 x 30"),
        (("--model", "inception_v3"), "inception_v3 cannot take images of 32 x 32"),
    )
    for number, (arguments, message) in enumerate(cases):
        output = tmp_path / f"out{number}"
        assert message in refusal(*SMALL, "--output", output, *arguments)
        assert not output.exists()
    assert number == 6
    process = run_recipe("search.py", *SMALL, "--output", output, *cases[0][0], check=False)
    assert process.returncode == 2
    assert process.stderr.startswith("error: ")
    assert cases[0][1] in process.stderr
    assert process.stderr.count("\n") == 1


def test_a_setting_that_is_newer_than_a_run_had_its_default(search, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(search[0], folder)
    content = json.loads((folder / "settings.json").read_text())
    assert content["settings"].pop("compile") is False
    (folder / "settings.json").write_text(json.dumps(content))
    again = (*SMALL, "--epochs", "3", "--output", folder, "--resume")
    assert "so this search has ended" in refusal(*again)
    assert "compile was False, is True" in refusal(*again, "--compile")


def test_a_search_that_diverges_says_so_and_draws_nothing(tmp_path):
    arguments = (*SMALL, "--lr", "1e38", "--epochs", "2", "--output", tmp_path / "run")
    assert "not finite in epoch 1: start again with a lower --lr" in refusal(*arguments)
    assert not (tmp_path / "run" / "ticket").exists()


def test_a_damaged_run_folder_is_named(search, tmp_path):
    folder, _ = search
    shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "ticket")
    again = (*SMALL, "--epochs", "3", "--output", tmp_path / "run", "--resume")
    whole = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    (tmp_path / "run" / "checkpoint.pt").write_bytes(whole[: len(whole) // 2])
    assert "checkpoint.pt cannot be read" in refusal(*again)
    (tmp_path / "run" / "settings.json").write_text('{"recipe": "search", "settings": []}')
    assert "holds something else than a run" in refusal(*again)
    below = ("--output", folder / "metrics.jsonl" / "run")
    assert "is no folder to write to" in refusal(*SMALL, *below)


@pytest.mark.slow
def test_accelerates_environment_does_not_change_the_accumulation(search, tmp_path):
    environment = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}
    run_recipe("search.py", *SMALL, "--epochs", "3", "--output", tmp_path / "run", **environment)
    assert digest(learned(search[0]), learned(search[0])) == digest(
        learned(tmp_path / "run"), learned(tmp_path / "run")
    )


def test_an_interrupted_search_resumes_to_the_same_bits(search, tmp_path):
    folder, _ = search
    output = tmp_path / "interrupted"
    command = [sys.executable, str(ROOT / "recipes/search.py"), *SMALL, "--epochs", "3", "--output", str(output)]
    environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a run in the background has it ignored
    )
    deadline = time.monotonic() + 120
    while not (output / "metrics.jsonl").exists() and time.monotonic() < deadline:  # which follows the checkpoint
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert "add --resume" in process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert 1 <= len(lines(output)) < 3
    assert not (output / "ticket").exists()
    resumed = run_recipe("search.py", *SMALL, "--epochs", "3", "--output", output, "--resume")
    assert "resumed after epoch" in resumed.stdout
    whole, again = learned(folder), learned(output)
    assert digest(whole, whole) == digest(again, again)
    assert [dict(line, seconds=0) for line in lines(folder)] == [dict(line, seconds=0) for line in lines(output)]
    tickets = [rst_hub.from_pretrained(run / "ticket").state_dict() for run in (folder, output)]
    assert digest(tickets[0], tickets[0]) == digest(tickets[1], tickets[1])


# A set of tickets


@pytest.fixture(scope="module")
def tiny(image_folder):
    """Return settings with which a ticket is searched and measured in a second."""
    images = ("--model", "test_resnet", "--dataset", image_folder, "--image-size", "16", "--holdout", "8")
    few = ("--test-samples", "8", "--epochs", "2", "--batch-size", "12", "--accumulation-steps", "2", "--steps", "2")
    return (*images, *few)


@pytest.fixture(scope="module")
def ticket_set(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "set"
    search_here(*tiny, "--remaining-ratios", "0.3,0.1", "--output", folder)
    return folder


def search_here(*arguments):
    search_recipe.main([str(argument) for argument in arguments])


def bits(folder, name=None):
    """Return the digests of a ticket's state dict and masks."""
    found = rst_hub.Ticket.load(folder / "ticket", name)
    state = found.state_dict()
    return digest(state, state), digest(found.masks, found.masks)


def without_seconds(folder):
    return [dict(line, seconds=0) for line in lines(folder)]


def test_a_set_is_the_tickets_that_are_found_alone(tiny, ticket_set, tmp_path):
    of_each = {"checkpoint.pt", "metrics.jsonl", "settings.json"}
    assert {path.name for path in ticket_set.iterdir()} == {"r0.1", "r0.3", "settings.json", "ticket"}
    assert json.loads((ticket_set / "settings.json").read_text())["settings"]["remaining_ratios"] == "0.3,0.1"
    for ratio in (0.3, 0.1):
        name, alone = f"r{ratio}", tmp_path / f"r{ratio}"
        search_here(*tiny, "--remaining-ratio", ratio, "--output", alone)
        assert {path.name for path in (ticket_set / name).iterdir()} == of_each
        assert bits(ticket_set, name) == bits(alone)
        assert without_seconds(ticket_set / name) == without_seconds(alone)
        of_set, of_one = (rst_hub.Ticket.load(folder / "ticket", name).provenance for folder in (ticket_set, alone))
        assert of_set["results"] == of_one["results"]
        assert of_set["settings"] == of_one["settings"]
        assert of_set["settings"]["remaining_ratio"] == ratio
    assert bits(ticket_set, "r0.1") != bits(ticket_set, "r0.3")
    assert rst_hub.r2s_from_pretrained(ticket_set / "ticket").eval()(torch.rand(1, 3, 16, 16)).shape == (1, 3)


def test_a_set_that_is_interrupted_twice_resumes_to_the_same_bits(tiny, ticket_set, tmp_path, monkeypatch, capsys):
    output = tmp_path / "set"
    arguments = (*tiny, "--remaining-ratios", "0.3,0.1", "--output", output)

    def before_the_second(run, name, settings, part=run_module.Run.part):
        if name == "r0.1":
            raise KeyboardInterrupt
        return part(run, name, settings)

    def in_the_second(run, state):
        folder_module.write_checkpoint(run, state)
        raise KeyboardInterrupt

    for where, stop, more in (
        (run_module.Run, before_the_second, ()),
        (loop, in_the_second, ("--resume",)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(where, "part" if where is run_module.Run else "write_checkpoint", stop)
            with pytest.raises(KeyboardInterrupt):
                search_here(*arguments, *more)
        assert ticket_names(output / "ticket") == ["r0.3"]
        assert (output / "r0.1" / "checkpoint.pt").exists() == (where is loop)
    first = [output / "ticket" / "ticket-r0.3.safetensors", *(output / "r0.3").iterdir()]
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in first]
    others = (*tiny, "--remaining-ratios", "0.3,0.1,0.5", "--output", output, "--resume")
    assert "remaining_ratios was '0.3,0.1', is '0.3,0.1,0.5'" in refusal(*others)
    alone = (*tiny, "--remaining-ratio", "0.1", "--output", output, "--resume")
    assert "remaining_ratios was '0.3,0.1', is None" in refusal(*alone)
    capsys.readouterr()

    search_here(*arguments, "--resume")
    said = capsys.readouterr().out
    assert "ticket 1 of 2: 30% of the weights: found already\nticket 2 of 2: 10% of the weights\n" in said
    assert "resumed after epoch 1 of 2" in said
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in first] == before
    for name in ("r0.3", "r0.1"):
        assert bits(output, name) == bits(ticket_set, name)
        assert without_seconds(output / name) == without_seconds(ticket_set / name)
        results = rst_hub.Ticket.load(output / "ticket", name).provenance["results"]
        row = f"{results['clean_accuracy']:>7.2f} %{results['robust_accuracy']:>7.2f} %{results['samples']:>13}"
        assert f"{float(name[1:]):>9.0%}{row}" in said
    assert f'rst_hub.from_pretrained("{output / "ticket"}", ticket="r0.3")' in said
    assert f'rst_hub.r2s_from_pretrained("{output / "ticket"}")' in said


def test_a_finished_set_is_left_alone(tiny, ticket_set):
    arguments = (*tiny, "--remaining-ratios", "0.3,0.1", "--output", ticket_set)
    assert "already holds a run: add --resume" in refusal(*arguments)
    assert "so this search has ended" in refusal(*arguments, "--resume")


def test_a_set_that_cannot_begin_writes_nothing(tiny, tmp_path):
    arguments = (
        *tiny,
        "--remaining-ratios",
        "0.3,0.1",
        "--model",
        "test_vit",
        "--image-size",
        "30",
        "--output",
        tmp_path / "set",
    )
    assert "test_vit cannot take images of 30 x 30" in refusal(*arguments)
    assert not (tmp_path / "set").exists()


def test_nothing_of_one_search_is_left_for_the_next():
    accelerator, scaler = Accelerator(), torch.amp.GradScaler("cpu")
    scaler.load_state_dict({**scaler.state_dict(), "scale": 4.0, "_growth_tracker": 7})
    accelerator.scaler, accelerator.step = scaler, 3
    accelerator.prepare_optimizer(torch.optim.SGD(accelerator.prepare_model(torch.nn.Linear(2, 2)).parameters()))
    rest = {f.name: None for f in dataclasses.fields(run_module.Run)}
    whole = run_module.Run(**{**rest, "accelerator": accelerator, "output": Path("set")})
    part = whole.part("r0.1", parse())
    assert (part.output, part.part_of, part.accelerator) == (Path("set/r0.1"), whole, accelerator)
    assert (accelerator._models, accelerator._optimizers, accelerator.step) == ([], [], 0)
    assert scaler.state_dict() == torch.amp.GradScaler("cpu").state_dict()


def test_a_long_list_of_ratios_has_a_short_folder():
    ratios = [f"0.{number}" for number in range(11, 99) if number % 10]
    few = parse("--remaining-ratios", "0.05,0.07,0.10")
    assert start_module._default_output("search", few) == "runs/search-resnet10t-digits-fgsm-rs-eps8-r0.05-0.07-0.1-s0"
    many = start_module._default_output("search", parse("--remaining-ratios", ",".join(ratios), "--seed", 2**64 - 1))
    assert f"-r0.11-to-0.98-of-{len(ratios)}-s" in many
    assert len(many) < 150


@pytest.mark.slow
def test_two_processes_search_a_set(tiny, tmp_path):
    arguments = (*tiny, "--remaining-ratios", "0.3,0.1", "--output")
    whole, half, alone = tmp_path / "whole", tmp_path / "half", tmp_path / "alone"
    process = run_recipe("search.py", *arguments, whole, launcher=launch(2))
    assert process.stdout.count("ticket 2 of 2: 10% of the weights") == 1
    run_recipe("search.py", *tiny, "--remaining-ratio", "0.1", "--output", alone, launcher=launch(2))
    assert bits(alone) == bits(whole, "r0.1")
    shutil.copytree(whole, half, ignore=shutil.ignore_patterns("ticket", "r0.1"))
    rst_hub.Ticket.load(whole / "ticket", "r0.3").save(half / "ticket")
    resumed = run_recipe("search.py", *arguments, half, "--resume", launcher=launch(2))
    assert resumed.stdout.count("ticket 1 of 2: 30% of the weights: found already") == 1
    assert [bits(half, name) for name in ("r0.3", "r0.1")] == [bits(whole, name) for name in ("r0.3", "r0.1")]


VIT = ("--model", "test_vit", "--holdout", "60", "--test-samples", "40", "--batch-size", "64", "--attack", "fgsm")


def test_processes_and_accumulation_share_one_effective_batch(tmp_path):
    # A network without batch norm and an attack without a random start: only the order of additions differs.
    runs = {
        "one": ((), ()),
        "accumulated": ((), ("--accumulation-steps", "4")),
        "two": (launch(2), ()),
    }
    outputs, shown = {}, {}
    for name, (launcher, more) in runs.items():
        outputs[name] = tmp_path / name
        arguments = (*VIT, "--epochs", "1", "--output", outputs[name], *more)
        shown[name] = run_recipe("search.py", *arguments, launcher=launcher).stdout
    reference = learned(outputs["one"])
    assert len(reference) > 10
    start = rst_hub.EdgePopup(
        rst_hub.create_model("test_vit", rst_hub.Init(0), num_classes=10, img_size=32), rst_hub.Init(0), 0.1
    )
    for name in ("accumulated", "two"):
        for key, expected in learned(outputs[name]).items():
            moved = (reference[key] - start.scores[key.removeprefix("learned.")].detach()).norm()
            assert float((expected - reference[key]).norm()) < 0.02 * float(moved), (name, key)
    digests = [
        line.rpartition(" ")[2] for line in shown["two"].splitlines() if line.startswith("mask digest of process")
    ]
    assert len(digests) == 2
    assert len(set(digests)) == 1


@pytest.mark.slow
def test_two_processes_resume_to_the_same_bits(tmp_path):
    arguments = (*VIT, "--attack", "fgsm-rs", "--epochs", "2", "--output")
    run_recipe("search.py", *arguments, tmp_path / "whole", launcher=launch(2))
    run_recipe("search.py", *arguments, tmp_path / "halves", "--max-steps", "19", launcher=launch(2))
    assert len(lines(tmp_path / "halves")) == 1
    shutil.rmtree(tmp_path / "halves" / "ticket")
    resumed = run_recipe("search.py", *arguments, tmp_path / "halves", "--resume", launcher=launch(2))
    assert "resumed after epoch 1 of 2" in resumed.stdout
    whole, halves = learned(tmp_path / "whole"), learned(tmp_path / "halves")
    assert digest(whole, whole) == digest(halves, halves)


@pytest.mark.slow
def test_bf16_searches(tmp_path):
    arguments = (*VIT, "--max-steps", "2", "--output", tmp_path / "run")
    run_recipe("search.py", *arguments, launcher=launch(1, "bf16"))
    ticket = rst_hub.Ticket.load(tmp_path / "run" / "ticket")
    assert ticket.provenance["precision"] == "bf16"
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in ticket.model().state_dict().values())


@pytest.mark.slow
def test_a_trial_is_measured_on_no_more_images_than_it_saw(image_folder, tmp_path):
    small = ("--model", "test_resnet", "--dataset", image_folder, "--image-size", "32", "--holdout", "20")
    more = ("--epochs", "9", "--batch-size", "4", "--max-steps", "2", "--attack", "pgd", "--steps", "2")
    run_recipe("search.py", *small, *more, "--output", tmp_path / "run")
    (line,) = lines(tmp_path / "run")
    assert (line["steps"], line["samples"]) == (2, 8)
    provenance = rst_hub.Ticket.load(tmp_path / "run" / "ticket").provenance
    assert provenance["results"]["samples"] == 8
    assert provenance["settings"]["dataset"] == image_folder.name
    assert rst_hub.from_pretrained(tmp_path / "run" / "ticket").pretrained_cfg["label_names"] == ["ant", "bee", "cat"]


@pytest.mark.parametrize(("max_steps", "held_out"), [(3, 12), (4, 20), (5, 20)])  # an epoch has four
def test_a_trial_of_whole_epochs_is_judged_as_what_resumes_it(image_folder, tmp_path, max_steps, held_out):
    small = ("--dataset", str(image_folder), "--image-size", "32", "--holdout", "20", "--batch-size", "4")
    arguments = [*small, "--max-steps", str(max_steps), "--output", str(tmp_path / "run")]
    started = start_module.start("search", parsing.parse(settings.SearchSettings, arguments, ""))
    assert (len(started.train), len(started.holdout)) == (16, held_out)


@pytest.mark.slow
def test_a_transformer_is_searched_with_adamw(tmp_path):
    arguments = ("--model", "test_vit", "--optimizer", "adamw", "--batch-size", "64", "--remaining-ratio", "0.3")
    arguments = (*arguments, "--holdout", "60", "--test-samples", "60", "--epochs", "5", "--output", tmp_path / "run")
    run_recipe("search.py", *arguments)
    losses = [line["loss"] for line in lines(tmp_path / "run")]
    assert losses[-1] < 0.8 * losses[0]
    ticket = rst_hub.Ticket.load(tmp_path / "run" / "ticket")
    assert ticket.timm_kwargs == {"num_classes": 10, "img_size": 32}
    assert ticket.provenance["settings"]["lr"] == 0.001
    assert ticket.provenance["results"]["clean_accuracy"] > 30


def test_a_dense_baseline_is_trained_by_the_same_loop(tmp_path):
    output = tmp_path / "dense"
    process = run_recipe("train.py", *SMALL, "--attack", "none", "--epochs", "2", "--output", output)
    results = json.loads((output / "results.json").read_text())
    assert f"clean accuracy    {results['results']['clean_accuracy']:.2f} %" in process.stdout
    first, last = lines(output)
    assert last["loss"] < 0.8 * first["loss"]
    model = load_dense(output / "model")
    assert model(torch.rand(1, 3, 32, 32)).shape == (1, 10)
    assert json.loads((output / "model" / "config.json").read_text())["provenance"] == results
    best = torch.load(output / "checkpoint.pt", weights_only=True)["best"]
    weights = model.state_dict()
    assert all(torch.equal(best[f"learned.{name}"], weights[name]) for name, _ in model.named_parameters())
    again = run_recipe("train.py", *SMALL, "--attack", "pgd", "--output", output, "--resume", check=False)
    assert "begun with other settings (attack was 'none', is 'pgd'" in again.stderr


def test_settings_that_may_change_on_resume_are_settings():
    names = {field.name for field in dataclasses.fields(settings.SearchSettings)}
    assert set(start_module._FREE_ON_RESUME) <= names


@pytest.mark.slow
def test_a_run_without_an_output_gets_a_folder_of_its_own(tmp_path):
    process = run_recipe("search.py", *VIT, "--max-steps", "1", "--remaining-ratio", "0.5", cwd=tmp_path)
    folder = tmp_path / "runs" / "search-test_vit-digits-fgsm-eps8-r0.5-s0"
    assert f"run folder {folder.relative_to(tmp_path)}" in process.stdout
    assert (folder / "ticket" / "ticket-r0.5.safetensors").exists()
    assert os.listdir(tmp_path) == ["runs"]


def test_names_and_budgets_are_spelled_in_one_way_wherever_they_come_from(tmp_path):
    for word in ("fgsm-rs", "fgsm_rs", "FGSM_RS"):
        (tmp_path / "row.toml").write_text(f'attack = "{word}"\neps = "8/255"\nstep_size = 2.0')
        found = (
            parse("--attack", word, "--eps", "8/255", "--step-size", "2/255"),
            parse("--config", tmp_path / "row.toml"),
            settings.SearchSettings(attack=word, step_size=2.0),
        )
        assert [(one.attack, one.eps, one.step_size) for one in found] == [("fgsm-rs", 8.0, 2.0)] * 3, word
    (tmp_path / "row.toml").write_text(
        'ticket = "x"\nattacks = "PGD-20, fgsm-rs"\nnorm = "linf"\neps = "8/255,0.5/255"'
    )
    kind = settings.BenchmarkSettings
    found = (
        parse("--ticket", "x", "--attacks", "PGD-20, fgsm-rs", "--norm", "linf", "--eps", "8/255,0.5/255", kind=kind),
        parse("--config", tmp_path / "row.toml", kind=kind),
        kind(attacks="PGD-20, fgsm-rs", norm="linf", eps="8/255,0.5/255"),
    )
    for one in found:
        assert (one.attacks, one.norm, one.eps, settings.budgets(one)) == (
            "pgd20,fgsm_rs",
            "Linf",
            "8,0.5/255",
            [8, 0.5],
        )
    kind = settings.TransferSettings
    one = parse("--tickets", "x", "--attack", "PGD_20", "--norm", "l2", "--eps", "0.5/255", kind=kind)
    assert (one.attack, one.norm, settings.budgets(one)) == ("pgd20", "L2", [0.5])
    assert parse("--schedule", "Cosine").schedule == "cosine"


def test_a_budget_on_pixels_from_0_to_1_is_refused_with_the_right_one(tmp_path):
    (tmp_path / "row.toml").write_text("eps = 0.0314\nstep_size = 0.0078")
    refused = (
        lambda: parse("--eps", "0.0314"),
        lambda: parse("--config", tmp_path / "row.toml"),
        lambda: parse("--eps", "0.0314", kind=settings.TransferSettings),
        lambda: parsing.report_all(settings.wrong_in(settings.SearchSettings(eps=8 / 255))),
        lambda: parsing.report_all(settings.wrong_in_measure(settings.TransferSettings(tickets="x", eps=0.0314))),
        lambda: settings.budgets(settings.BenchmarkSettings(eps="8,0.0314")),
    )
    for refuse in refused:
        with pytest.raises(SettingsError, match=r"give 8, or 8/255"):
            refuse()
    with pytest.raises(SettingsError, match=r"--step-size: 0.0078 .* give 2, or 2/255"):
        parse("--step-size", "0.0078")
    with pytest.raises(SettingsError, match="--attack pgd --steps 20"):
        parse("--attack", "PGD-20")
    wrong = settings.wrong_in(settings.SearchSettings(attack="pdg", loss="hinge"))
    assert [said.partition(":")[0] for said in wrong] == ["--attack 'pdg'", "--loss 'hinge'"]
