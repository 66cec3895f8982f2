"""timm's own way to a ticket, once rst_hub is imported: ``timm.create_model("hf-hub:org/name", pretrained=True)``.

A ticket's config.json names this entrypoint, ``rst``, as its architecture; timm hands it what else that file says.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timm.models import PretrainedCfg, _registry, register_model
from torch import nn

from ..errors import ArchitectureError, SettingsError, printable
from ..networks.build import build_features, create_model
from ..networks.classifier import give_classes
from ..networks.inputs import carried_input, channel_values, checked_names, describe_as, features_input, set_input
from ..networks.weights import Init
from ..tickets.ticket import Ticket
from .loading import load_ticket

_PREPARATION = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std", "label_names")
"""What of a pretrained_cfg may be given anew: how images are prepared, and the labels' names. The rest are facts."""


@register_model
def rst(
    pretrained: bool = False,
    pretrained_cfg: Any = None,
    *,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    pretrained_model_args: Mapping[str, Any] | None = None,
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
        pretrained_cfg: timm's, which says what folder or repository the ticket is in, and what its input is.
        pretrained_cfg_overlay: entries of the model's pretrained_cfg that are to be others: input_size, interpolation,
            crop_pct, crop_mode, mean, std or label_names.
        pretrained_model_args: timm's, what config.json says of the ticket's network; not needed without ``pretrained``.
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
    if out_indices is not None and not features_only:
        raise SettingsError(f"out_indices={out_indices!r} goes with features_only=True")
    source = _entries("pretrained_cfg", pretrained_cfg)
    overlay = _entries("pretrained_cfg_overlay", pretrained_cfg_overlay)
    if not pretrained:
        if base is None or seed is None:
            raise ArchitectureError("rst is no architecture of its own: it loads tickets and needs their base and seed")
        model = create_model(base, Init(seed, distribution or Init(0).distribution), **kwargs)
        describe_as(model, source)
        if features_only:
            dense, model = model, build_features(base, kwargs, model.state_dict(), out_indices)
            set_input(model, features_input(carried_input(dense)))
        _overlay(model, overlay)
        return model
    drawn = _ticket_of(source, ticket, cache_dir)
    classes = kwargs.pop("num_classes", None)
    given = {**kwargs, "base": base, "seed": seed, "distribution": distribution}
    _check_given(drawn, given, pretrained_model_args or {}, source)
    model = drawn.features(out_indices) if features_only else drawn.model()
    if not features_only:
        give_classes(model, drawn.architecture, classes)
    _overlay(model, overlay)
    return model


def _unlist(name: str) -> None:
    """Keep a registered name out of timm's listings, whose users build all that is listed; timm still finds it.

    timm has no way to ask for that, and leaves out of its listings what is in one dict of it, of deprecated names.
    """
    getattr(_registry, "_deprecated_models", {})[name] = None
    modules, own = getattr(_registry, "_module_to_models", {}), __name__.rpartition(".")[2]
    modules.get(own, set()).discard(name)
    if own in modules and not modules[own]:
        del modules[own]


_unlist("rst")


def _entries(name: str, given: Any) -> dict[str, Any]:
    """Return a pretrained_cfg's entries in any form in which timm takes one."""
    if isinstance(given, PretrainedCfg):
        return given.to_dict()
    if given is not None and not isinstance(given, Mapping):
        raise ArchitectureError(
            f"{name}={printable(repr(given))}: give a dict of entries; a ticket has no pretrained tag"
        )
    return dict(given or {})


def _check_given(
    drawn: Ticket, given: Mapping[str, Any], model_args: Mapping[str, Any], pretrained_cfg: Mapping[str, Any]
) -> None:
    """Raise ArchitectureError for anything that timm or its caller says of a ticket and that is not so."""
    own, cfg = _arguments(drawn), {key: _plain(key, value) for key, value in drawn.pretrained_cfg.items()}
    different = _differing(given, own)
    if different:
        moved = "; move the model with .to(...)" if {"device", "dtype"} & set(different) else ""
        raise ArchitectureError(f"a ticket keeps its arguments {own}; {different} cannot be given{moved}")
    different = _differing(model_args, {"num_classes": cfg.get("num_classes"), **own})
    if different:
        raise ArchitectureError(f"a ticket keeps its arguments {own}: pretrained_model_args says {different}")
    different = _differing({key: value for key, value in pretrained_cfg.items() if key in cfg}, cfg)
    if different:
        raise ArchitectureError(
            f"pretrained_cfg says {printable(different, 200)}, which is not the ticket's: give pretrained_cfg_overlay "
            "to change how its images are prepared"
        )


def _differing(given: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if value is not None and own.get(key) != _plain(key, value)}


def _overlay(model: nn.Module, overlay: Mapping[str, Any]) -> None:
    """Change entries of a model's pretrained_cfg; raise ArchitectureError for those that cannot be others."""
    own = carried_input(model)
    facts = {key: value for key, value in overlay.items() if key not in _PREPARATION}
    different = {key: value for key, value in facts.items() if key not in own or _plain(key, value) != own[key]}
    if different:
        raise ArchitectureError(
            f"pretrained_cfg_overlay says {printable(different, 200)}: a ticket's weights and layers are its own, so "
            f"give some of {', '.join(_PREPARATION)}"
        )
    if "label_names" in overlay and "num_classes" not in own:
        raise ArchitectureError("a features_only model has no labels: leave label_names out of pretrained_cfg_overlay")
    for key, check in (("mean", channel_values), ("std", channel_values), ("label_names", checked_names)):
        given = overlay.get(key)
        if isinstance(given, list | tuple) and list(given) != _plain(key, own.get(key)):  # a ticket's own may be any
            try:
                check(key, given)
            except SettingsError as error:
                raise ArchitectureError(f"pretrained_cfg_overlay says {error}") from error
    size, own_size = (list(cfg.get("input_size", ())) for cfg in ({**own, **overlay}, own))
    if size[:1] != own_size[:1] or (own.get("fixed_input_size") and size != own_size):
        raise ArchitectureError(f"pretrained_cfg_overlay says input_size={size}, but the network takes {own_size} only")
    set_input(model, {**own, **overlay})


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
    if source.get("source") == "local-dir" and source.get("file"):
        return load_ticket(Path(source["file"]), ticket)
    if source.get("source") == "hf-hub" and source.get("hf_hub_id"):
        return load_ticket(f"hf://{source['hf_hub_id']}", ticket, cache_dir=cache_dir)
    raise ArchitectureError("a ticket is loaded by timm.create_model, from 'hf-hub:org/name' or 'local-dir:FOLDER'")
