"""What benchmarks/size.py measures by, on masks whose code lengths are known, and on small tickets."""

import json

import pytest
import torch
from size import (
    Size,
    code_length,
    decayed,
    groupings,
    measured,
    missed,
    of_scores,
    random_ticket,
    searched_masks,
    shannon,
    shares,
    shortest,
    show_run,
)

from rst_hub import EdgePopup, Init, Ticket, create_model
from rst_hub.masks.patterns import kept_count, top_k_mask

SHAPES = {"a.weight": (64, 32, 3, 3), "b.weight": (100, 300), "c.weight": (8, 3, 1, 1)}


def masks_of(scores, ratio=0.1):
    return {name: top_k_mask(values, kept_count(values.numel(), ratio)) for name, values in scores.items()}


def random_masks(seed):
    generator = torch.Generator().manual_seed(seed)
    return masks_of({name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()})


def test_code_lengths_by_hand():
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]], dtype=torch.bool)
    assert 2 ** shannon(mask) == pytest.approx(15)  # 6 choose 2
    rows = torch.tensor([0, 0, 0, 1, 1, 1])
    # (2, 0), (1, 1) or (0, 2) ones in the rows; then 3 choose 2 and 3 choose 0
    assert 2 ** code_length(mask, rows) == pytest.approx(3 * 3)
    assert 2 ** code_length(mask, torch.tensor([0, 0, 1, 1, 1, 1])) == pytest.approx(3)
    assert 2 ** shortest(mask, [rows]) == pytest.approx(2 * 9)  # of two codes, so one bit more
    assert shortest(mask, []) == shannon(mask)


def test_an_independent_mask_costs_the_bound_whatever_is_known():
    found = shares(random_masks(1), Init(0), 0, sparser=random_masks(2))
    assert len(found) == 6
    for what, share in found.items():
        assert 0.999 < share < 1.002, what


def test_initial_scores_give_away_the_mask_that_they_choose():
    model = create_model("test_resnet", Init(3), num_classes=10)
    masks = EdgePopup(model, Init(3), 0.1, score_seed=5).masks()
    found = shares(masks, Init(3), 5)
    assert found["initial scores"] < 0.06
    assert shares(masks, Init(3), 6)["initial scores"] > 0.999  # another seed's scores say nothing
    assert min(share for what, share in found.items() if what != "initial scores") > 0.999


@pytest.mark.parametrize(
    ("what", "chosen"),
    [
        ("weights' signs", lambda name, shape: groupings(name, torch.ones(shape), Init(0), 0)["weights' signs"][0] > 0),
        ("kernel position", lambda name, shape: torch.ones(shape).cumsum(-1).eq(2)),
        ("output channel", lambda name, shape: torch.ones(shape).cumsum(0).le(0.1 * shape[0])),
        ("input channel", lambda name, shape: torch.ones(shape).cumsum(1).le(0.1 * shape[1])),
    ],
)
def test_each_structure_is_found_by_its_own_groups(what, chosen):
    shape = (64, 32, 3, 3)
    mask = chosen("a.weight", shape).reshape(shape)
    found = shares({"a.weight": mask}, Init(0), 0)
    assert found.pop(what) < 0.1
    assert min(found.values()) > 0.99


def test_a_saved_ticket_is_measured_to_the_byte(tmp_path):
    folder = random_ticket("test_resnet", 0.1).save(tmp_path / "ticket")
    size = measured(folder)
    assert size.folder == sum(path.stat().st_size for path in folder.iterdir())
    ticket = Ticket.load(folder)
    assert size.mask_heads == 10 * len(ticket.masks) > 0
    statistics = [value for name, value in ticket.state.items() if name.endswith(("running_mean", "running_var"))]
    assert size.rest > 4 * sum(map(len, statistics)) > 0  # none of them is stored as one value
    assert sum(value.nbytes for value in ticket.state_dict().values()) < size.dense


@pytest.mark.parametrize("ratio", [0.05, 0.2])  # where limit and code are closest
def test_tickets_stay_within_the_limits(ratio, tmp_path):
    size = measured(random_ticket("resnet10t", ratio).save(tmp_path / "ticket"))
    assert size.of_bound > 1
    assert not missed({("resnet10t", ratio): size})


def test_a_missed_limit_is_said(capsys):
    size = Size(bound=1000, masks=1070, mask_heads=10, rest=0, file_head=0, config=0, dense=1070 * 79)
    assert missed({("resnet101", 0.05): size})
    printed = capsys.readouterr().out
    assert printed.count("MISSED") == 2


def test_scores_decay_as_is_said():
    score = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([score], 0.1, momentum=0.9, weight_decay=5e-4)
    score.grad = torch.zeros(1)
    metrics = [{"steps": 500, "lr": 0.1}, {"steps": 1000, "lr": 0.01}]
    for step in range(1000):
        optimizer.param_groups[0]["lr"] = metrics[step // 500]["lr"]
        optimizer.step()
    left = score.item()
    assert decayed({"weight_decay": 5e-4, "momentum": 0.9}, metrics) == pytest.approx(left, rel=0.01)
    assert 0.7 < left < 0.8


def test_a_run_is_shown_whole_and_by_tensor(tmp_path, capsys):
    model = create_model("test_resnet", Init(3), num_classes=10)
    popup = EdgePopup(model, Init(3), 0.1, score_seed=5)
    state = {f"learned.{name}": scores.detach() for name, scores in popup.scores.items()}
    state |= {f"buffer.{name}": buffer for name, buffer in model.named_buffers()}
    masks = searched_masks(of_scores(state), 0.1, "uniform")
    assert len(masks) == 16
    assert all(torch.equal(mask, popup.masks()[name]) for name, mask in masks.items())
    torch.save({"state": state, "metrics": [{"epoch": 1, "steps": 1000, "lr": 0.1}]}, tmp_path / "checkpoint.pt")
    settings = {"seed": 3, "distribution": "signed_kaiming_constant", "score_seed": 5, "remaining_ratio": 0.1}
    settings |= {"model": "test_resnet", "optimizer": "sgd", "weight_decay": 5e-4, "momentum": 0.9}
    (tmp_path / "settings.json").write_text(json.dumps({"settings": settings}))
    show_run(tmp_path, [tmp_path / "checkpoint.pt"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[3:]]
    assert len(rows) == 1 + 16
    assert rows[0][:6] == [
        "epoch",
        "1,",
        "1,000",
        "steps",
        "0.6065",
        f"{shares(masks, Init(3), 5)['initial scores']:.4f}",
    ]
    assert [row[0] for row in rows[1:]] == list(masks)
