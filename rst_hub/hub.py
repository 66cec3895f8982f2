"""from_pretrained: a ticket as a plain timm model."""

from pathlib import Path

from torch import nn

from .errors import TicketError
from .ticket import Ticket


def from_pretrained(folder: str | Path, *, ticket: str | None = None) -> nn.Module:
    """Return a plain timm model in eval mode whose parameters are the masked weights of a ticket; no score, no wrapper.

    ``model.pretrained_cfg`` carries input size, mean and std: ``timm.data.resolve_model_data_config(model)`` is right.

    Args:
        folder: a ticket folder, as ``Ticket.save`` writes it.
        ticket: the name of one ticket, when the folder holds several.

    Raises:
        TicketError: the folder is not there, or not exactly what was saved.
        ArchitectureError: the installed timm does not know the architecture.
    """
    if not Path(folder).is_dir():
        raise TicketError(f"{folder} is not a folder here: give the path of a ticket folder, with its config.json")
    return Ticket.load(folder, ticket).model()
