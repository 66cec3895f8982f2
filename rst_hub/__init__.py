"""rst-hub: robust scratch tickets, subnetworks of random networks, as timm models.

Importing it takes no time: what is used of it is imported then. timm knows its networks and tickets from then on.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .errors import RstHubError
from .registering import register_with_timm
from .version import __version__ as __version__

if TYPE_CHECKING:
    from .attacks.arc import arc
    from .attacks.autoattack import autoattack
    from .attacks.bandits import bandits
    from .attacks.carlini_wagner import cw_l2
    from .attacks.common import ThreatModel
    from .attacks.gradient import cw_linf, fgsm, fgsm_rs, pgd
    from .attacks.square import square
    from .evaluation.accuracy import clean_accuracy, robust_accuracy
    from .evaluation.sanity import honesty_flags
    from .evaluation.transfer import transfer_matrix
    from .hub.listing import list_models
    from .hub.loading import from_pretrained, r2s_from_pretrained, robustbench_model
    from .hub.push import push_to_hub
    from .masks.edge_popup import EdgePopup
    from .networks.build import create_model
    from .networks.inputs import describe_input
    from .networks.pixels import PixelModel
    from .networks.weights import Init, SeededTensor
    from .tickets.pool import TicketPool
    from .tickets.r2s import R2S
    from .tickets.ticket import Ticket

__all__ = [
    "R2S",
    "EdgePopup",
    "Init",
    "PixelModel",
    "RstHubError",
    "SeededTensor",
    "ThreatModel",
    "Ticket",
    "TicketPool",
    "arc",
    "autoattack",
    "bandits",
    "clean_accuracy",
    "create_model",
    "cw_l2",
    "cw_linf",
    "describe_input",
    "fgsm",
    "fgsm_rs",
    "from_pretrained",
    "honesty_flags",
    "list_models",
    "pgd",
    "push_to_hub",
    "r2s_from_pretrained",
    "robust_accuracy",
    "robustbench_model",
    "square",
    "transfer_matrix",
]

_FILES = {
    "EdgePopup": "masks.edge_popup",
    "Init": "networks.weights",
    "PixelModel": "networks.pixels",
    "R2S": "tickets.r2s",
    "SeededTensor": "networks.weights",
    "ThreatModel": "attacks.common",
    "Ticket": "tickets.ticket",
    "TicketPool": "tickets.pool",
    "arc": "attacks.arc",
    "autoattack": "attacks.autoattack",
    "bandits": "attacks.bandits",
    "clean_accuracy": "evaluation.accuracy",
    "create_model": "networks.build",
    "cw_l2": "attacks.carlini_wagner",
    "cw_linf": "attacks.gradient",
    "describe_input": "networks.inputs",
    "fgsm": "attacks.gradient",
    "fgsm_rs": "attacks.gradient",
    "from_pretrained": "hub.loading",
    "honesty_flags": "evaluation.sanity",
    "list_models": "hub.listing",
    "pgd": "attacks.gradient",
    "push_to_hub": "hub.push",
    "r2s_from_pretrained": "hub.loading",
    "robust_accuracy": "evaluation.accuracy",
    "robustbench_model": "hub.loading",
    "square": "attacks.square",
    "transfer_matrix": "evaluation.transfer",
}
"""Where each public name is made."""
_ROOMS = ("attacks", "cards", "data", "evaluation", "hub", "masks", "networks", "runs", "tickets")


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_FILES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_FILES, *_ROOMS})


register_with_timm()
