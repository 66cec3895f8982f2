"""timm's own way to a ticket, once rst_hub is imported: ``timm.create_model("hf-hub:org/name", pretrained=True)``.

A ticket's config.json names this entrypoint, ``rst``, as its architecture; timm hands it what else that file says.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timm.models import register_model
from torch import nn

from .errors import ArchitectureError, SettingsError
from .hub import load_ticket
from .models import build_features, check_architecture, create_model, set_input
from .ticket import Ticket
from .weights import Init

_OF_TIMM = ("pretrained_cfg_overlay", "pretrained_model_args")


@register_model
def rst(
    pretrained: bool = False,
    pretrained_cfg: Mapping[str, Any] | None = None,
    *,
    base: str | None = None,
    seed: int | None = None,
    distribution: str | None = None,
    ticket: str | None = None,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    cache_dir: str | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Return a ticket's model in eval mode (``pretrained=True``), or the dense random network that it is drawn from.

    Args:
        pretrained: load the ticket.
        pretrained_cfg: timm's, which says what folder or repository the ticket is in.
        base: the architecture.
        seed: of the random weights.
        distribution: of the random weights; signed_kaiming_constant when None.
        ticket: the name of one ticket, when there are several.
        features_only: return timm's ``features_only`` form, which maps images to a list of feature maps.
        out_indices: which of its feature levels.
        cache_dir: of the Hub's client.
        **kwargs: as for :func:`rst_hub.create_model`. With ``pretrained`` another num_classes gives a new classifier
            behind the ticket's features; other arguments must be the ticket's.

    Raises:
        ArchitectureError: there is no ticket or no base to build from, or the arguments are not the ticket's.
        HubError, TicketError: the folder or repository does not hold exactly what was saved.
        SettingsError: out_indices is given without features_only.
    """
    kwargs = {key: value for key, value in kwargs.items() if key not in _OF_TIMM}
    if out_indices is not None and not features_only:
        raise SettingsError(f"out_indices={out_indices!r} goes with features_only=True")
    if not pretrained:
        if base is None or seed is None:
            raise ArchitectureError("rst is no architecture of its own: it loads tickets and needs their base and seed")
        dense = create_model(base, Init(seed, distribution or Init(0).distribution), **kwargs)
        return build_features(base, kwargs, dense.state_dict(), out_indices) if features_only else dense
    drawn = _ticket_of(dict(pretrained_cfg or {}), ticket, cache_dir)
    classes = kwargs.pop("num_classes", None)
    given = {**kwargs, "base": base, "seed": seed, "distribution": distribution}
    own = _arguments(drawn)
    different = {key: value for key, value in given.items() if value is not None and own.get(key) != _plain(key, value)}
    if different:
        raise ArchitectureError(f"a ticket keeps its arguments {own}; {different} cannot be given")
    if features_only:
        return drawn.features(out_indices)
    model: Any = drawn.model()
    if classes in (None, model.num_classes):
        return model
    check_architecture(drawn.architecture, {"num_classes": classes})
    if not hasattr(model, "reset_classifier"):
        raise ArchitectureError(f"{drawn.architecture} has no classifier, so num_classes={classes} cannot be given")
    model.reset_classifier(classes)
    input_of = {key: value for key, value in model.pretrained_cfg.items() if key != "label_names"}
    set_input(model, {**input_of, "num_classes": classes})
    return model


def _arguments(drawn: Ticket) -> dict[str, Any]:
    """Return all that a ticket says of its network, also where it leaves out what is timm's default."""
    channels, *size = drawn.pretrained_cfg.get("input_size", (3,))
    stated = {"base": drawn.architecture, "seed": drawn.init.seed, "distribution": drawn.init.distribution}
    unstated = {"in_chans": channels, "img_size": size, "drop_rate": 0, "drop_path_rate": 0}
    return {**unstated, **stated, **{key: _plain(key, value) for key, value in drawn.timm_kwargs.items()}}


def _plain(key: str, value: Any) -> Any:
    """Return an argument in one of its forms: a size as [height, width]."""
    if key == "img_size" and isinstance(value, int):
        return [value, value]
    return list(value) if isinstance(value, tuple) else value


def _ticket_of(source: Mapping[str, Any], ticket: str | None, cache_dir: str | None) -> Ticket:
    """Return the ticket that timm's pretrained_cfg points to."""
    if source.get("source") == "local-dir":
        return load_ticket(Path(source["file"]), ticket)
    if source.get("source") == "hf-hub":
        return load_ticket(f"hf://{source['hf_hub_id']}", ticket, cache_dir=cache_dir)
    raise ArchitectureError("a ticket is loaded by timm.create_model, from 'hf-hub:org/name' or 'local-dir:FOLDER'")
