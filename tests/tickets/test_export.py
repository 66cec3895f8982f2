import dataclasses
import json
import subprocess
import sys

import pytest
import timm
import torch
from conftest import ROOT, make_popup

from rst_hub import Ticket
from rst_hub.errors import ArchitectureError, SettingsError
from rst_hub.networks.dense import load_dense
from rst_hub.tickets.export import export, for_plain_timm

WITHOUT_US = """
import json, sys, timm, torch
from safetensors.torch import load_file
folder = sys.argv[1]
config = json.load(open(folder + "/config.json"))
assert config["architecture"] in timm.list_models()
model = timm.create_model(config["architecture"], **config["model_args"])
model.load_state_dict(load_file(folder + "/model.safetensors"), strict=True)
assert "rst_hub" not in sys.modules
x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
torch.save(model.eval()(x), folder + "/out.pt")
"""


@pytest.mark.parametrize("architecture", ["test_resnet", "test_nfnet"])
def test_plain_timm_loads_the_checkpoint_and_computes_the_same(architecture, tmp_path):
    ticket = Ticket.draw(make_popup(architecture))
    assert export(ticket, tmp_path / "dense", "safetensors") < 1e-5
    assert sorted(path.name for path in (tmp_path / "dense").iterdir()) == ["config.json", "model.safetensors"]
    subprocess.run([sys.executable, "-c", WITHOUT_US, str(tmp_path / "dense")], check=True, cwd=ROOT / "tests")
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = ticket.model()(x).detach()
    found = torch.load(tmp_path / "dense" / "out.pt").detach()
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_the_checkpoint_is_the_tickets_state_dict_and_says_its_input(tmp_path, ticket):
    assert export(ticket, tmp_path / "dense", "safetensors") == 0.0
    own, dense = ticket.model(), load_dense(tmp_path / "dense")
    assert own.state_dict().keys() == dense.state_dict().keys()
    assert all(torch.equal(value, dense.state_dict()[key]) for key, value in own.state_dict().items())
    assert timm.data.resolve_model_data_config(own) == timm.data.resolve_model_data_config(dense)
    assert json.loads((tmp_path / "dense" / "config.json").read_text())["pretrained_cfg"]["label_names"][3] == "3"


def test_shared_weights_and_the_papers_networks_are_written_too(tmp_path):
    for name, kwargs in (("coat_lite_tiny", {"img_size": 32}), ("preact_resnet18", {})):
        assert export(Ticket.draw(make_popup(name, **kwargs)), tmp_path / name, "safetensors") == 0.0
        again = load_dense(tmp_path / name)
        assert again(torch.rand(1, 3, 32, 32)).shape == (1, 10)


def test_a_standardised_network_becomes_timms_own_class():
    model = for_plain_timm(Ticket.draw(make_popup("test_nfnet")))
    assert type(model) is type(timm.create_model("test_nfnet"))
    assert {type(module).__name__ for module in model.modules() if hasattr(module, "gain")} == {"ScaledStdConv2d"}


VIT_RELPOS = pytest.param("test_vit_relpos", marks=pytest.mark.slow)


@pytest.mark.parametrize("architecture", ["test_vit", VIT_RELPOS, "test_nfnet"])
def test_onnx_computes_the_same_for_any_batch(architecture, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    if not timm.is_model(architecture):
        pytest.skip(f"timm {timm.__version__} has no {architecture} yet")
    kwargs = {"img_size": 32} if "vit" in architecture else {}
    ticket = Ticket.draw(make_popup(architecture, **kwargs))
    assert export(ticket, tmp_path / "onnx", "onnx") < 1e-4
    assert sorted(path.name for path in (tmp_path / "onnx").iterdir()) == ["config.json", "model.onnx"]
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "model.onnx"), providers=["CPUExecutionProvider"])
    x = torch.randn(5, 3, 32, 32)
    (found,) = session.run(["output"], {"input": x.numpy()})
    expected = ticket.model()(x).detach()
    assert torch.allclose(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_what_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path, ticket, monkeypatch):
    with pytest.raises(SettingsError, match="is no folder to write to"):
        export(ticket, "a" * 300, "safetensors")
    drawn = Ticket.draw(make_popup("vit_tiny_patch16_224", img_size=32))
    says_otherwise = {**drawn.pretrained_cfg, "input_size": [3, 48, 48]}  # as older tickets of such networks may
    with pytest.raises(ArchitectureError, match="vit_tiny_patch16_224 cannot take its own input, 3 x 48 x 48"):
        export(dataclasses.replace(drawn, pretrained_cfg=says_otherwise), tmp_path / "new", "safetensors")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(SettingsError, match="is there already"):
        export(ticket, tmp_path / "full", "safetensors")
    with pytest.raises(SettingsError, match="safetensors or onnx"):
        export(ticket, tmp_path / "new", "gguf")
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="cannot be written"):
        export(ticket, tmp_path / "file" / "below", "safetensors")
    monkeypatch.setattr(torch.onnx, "export", lambda *a, **k: (_ for _ in ()).throw(ImportError("no onnxscript")))
    with pytest.raises(SettingsError, match="pip install onnx onnxscript onnxruntime"):
        export(ticket, tmp_path / "new", "onnx")
    monkeypatch.setattr(torch.onnx, "export", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("no such op\nmore")))
    with pytest.raises(ArchitectureError, match="cannot export test_resnet to ONNX: no such op"):
        export(ticket, tmp_path / "new", "onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]
