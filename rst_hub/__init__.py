"""rst-hub: robust scratch tickets, subnetworks of random networks, as timm models."""

import importlib
from typing import Any

from .attacks.arc import arc
from .attacks.autoattack import autoattack
from .attacks.bandits import bandits
from .attacks.carlini_wagner import cw_l2
from .attacks.common import ThreatModel
from .attacks.gradient import cw_linf, fgsm, fgsm_rs, pgd
from .attacks.square import square
from .errors import RstHubError
from .evaluation.accuracy import clean_accuracy, robust_accuracy
from .evaluation.sanity import honesty_flags
from .evaluation.transfer import transfer_matrix
from .hub import entrypoint as entrypoint  # registers ``rst`` with timm
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
from .version import __version__ as __version__

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

_ROOMS = ("attacks", "cards", "data", "evaluation", "hub", "masks", "networks", "runs", "tickets")


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
