"""rst-hub: robust scratch tickets, subnetworks of random networks, as timm models."""

from . import entrypoint as entrypoint  # registers ``rst`` with timm
from .adaptive import arc
from .attacks import ThreatModel, cw_l2, cw_linf, fgsm, fgsm_rs, pgd
from .autoattack import autoattack
from .blackbox import bandits, square
from .errors import RstHubError
from .evaluate import clean_accuracy, robust_accuracy, transfer_matrix
from .flags import honesty_flags
from .hub import from_pretrained, r2s_from_pretrained, robustbench_model
from .listing import list_models
from .masking import EdgePopup
from .models import PixelModel, create_model, describe_input
from .pool import TicketPool
from .publish import push_to_hub
from .r2s import R2S
from .ticket import Ticket
from .version import __version__ as __version__
from .weights import Init

__all__ = [
    "R2S",
    "EdgePopup",
    "Init",
    "PixelModel",
    "RstHubError",
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
