import math

import numpy as np
import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from ticket_results import network, put, result, section, text_of, transfer

from rst_hub.cards.card import write_card
from rst_hub.cards.gathered import shannon_bits
from rst_hub.errors import SettingsError


def test_the_size_table_has_the_files_own_numbers(folder, ticket):
    content = (folder / ticket.file).read_bytes()
    masks = sum(tensor.numel() for name, tensor in load_file(folder / ticket.file).items() if name.startswith("mask."))
    dense = sum(tensor.numel() * tensor.element_size() for tensor in ticket.state_dict().values())
    bound = 0.0
    for mask in ticket.masks.values():
        n, k = mask.numel(), int(mask.sum())
        logarithms = np.log2(np.arange(1, n + 1))
        bound += float(logarithms.sum() - logarithms[:k].sum() - logarithms[: n - k].sum()) / 8
    line = next(line for line in text_of(folder).splitlines() if line.startswith("| `r0.1` |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert f"({len(content):,} bytes)" in cells[1]
    assert f"({dense:,} bytes)" in cells[2]
    assert cells[3] == f"{dense / len(content):.1f}"
    assert cells[4] == f"{masks:,} bytes"
    assert cells[5] == f"{bound:,.0f} bytes"
    assert cells[6] == f"{masks / bound:.3f}"
    assert masks / bound >= 1
    assert shannon_bits(4, 2) == pytest.approx(math.log2(6))
    assert shannon_bits(7, 0) == 0


def test_a_transfer_matrix_that_an_r2ss_result_has_too_stands_there_once(pair, tmp_path):
    said, matrices = result("r2s", network(pair)), transfer(pair)
    full, early = said["protocols"]
    matrices["accuracy"] = {"full": full["matrix"], "paper": early["matrix"]}
    write_card(pair, [put(tmp_path / "a.json", said), put(tmp_path / "t.json", matrices)])
    counted = section(text_of(pair), "R2S, all tickets").count("| the paper's protocol (")
    assert counted == 2
    other = early["matrix"][0][0]
    matrices["accuracy"]["paper"] = [[other + 1, *early["matrix"][0][1:]], early["matrix"][1]]
    write_card(pair, [put(tmp_path / "t.json", matrices)])
    own = section(text_of(pair), "R2S, all tickets")
    assert own.count("| the paper's protocol (") == 3
    assert f"| {early['accuracy'] + 0.25:.2f} | not recorded |" in own


def test_two_dense_networks_of_one_label_are_not_taken_for_one(folder, tmp_path):
    one, other = (
        result("dense", {"source": "dense", "architecture": "ResNet", "state_digest": digit * 64}, clean=clean)
        for digit, clean in (("a", 900), ("b", 800))
    )
    write_card(folder, [put(tmp_path / "a.json", one)])
    assert "Dense network dense: accuracy" in section(text_of(folder), "Dense networks")
    write_card(folder, [put(tmp_path / "b.json", other)])
    found = section(text_of(folder), "Dense networks")
    assert "Dense network dense:" not in found
    parts = {part[:8]: part for part in found.split("Dense network dense (state ")[1:]}
    assert set(parts) == {"aaaaaaaa", "bbbbbbbb"}
    assert ("| 90.00 |" in parts["aaaaaaaa"], "| 80.00 |" in parts["aaaaaaaa"]) == (True, False)
    assert ("| 90.00 |" in parts["bbbbbbbb"], "| 80.00 |" in parts["bbbbbbbb"]) == (False, True)


def test_a_note_goes_with_one_data_set(folder, tmp_path):
    files = [
        put(tmp_path / "a.json", result("ticket", network(folder))),
        put(tmp_path / "b.json", result("ticket", network(folder), name="svhn")),
    ]
    with pytest.raises(SettingsError, match="cifar10, svhn"):
        write_card(folder, files, {"dataset": {"note": "JPEG"}})
    write_card(folder, files)
    assert {one.dataset_name for one in ModelCard((folder / "README.md").read_text()).data.eval_results} == {
        "cifar10",
        "svhn",
    }
