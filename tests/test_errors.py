from rst_hub import errors
from rst_hub.errors import RstHubError, nearest


def test_every_kind_is_an_rst_hub_error():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(kinds) == 7
    assert all(issubclass(kind, RstHubError) for kind in kinds)


def test_nearest_names_what_is_near_or_what_is_known():
    names = ["resnet18", "resnet50", "vit_tiny"]
    assert nearest("resnet81", names) == "Did you mean resnet18 or resnet50?"
    assert nearest("zzz", names) == "Known: resnet18, resnet50, vit_tiny."
    assert nearest("zzz", [f"name{i}" for i in range(99)]) == "No known name is near it."
