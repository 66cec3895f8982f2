"""rst-hub: robust scratch tickets, subnetworks of random networks, as timm models."""

from . import entrypoint as entrypoint  # registers ``rst`` with timm
from .attacks import ThreatModel, cw_l2, cw_linf, fgsm, fgsm_rs, pgd
from .autoattack import autoattack
from .blackbox import bandits, square
from .errors import RstHubError
from .evaluate import clean_accuracy, robust_accuracy, transfer_matrix
from .flags import honesty_flags
from .hub import from_pretrained, robustbench_model
from .masking import EdgePopup
from .models import PixelModel, create_model
from .ticket import Ticket
from .weights import Init

__version__ = "0.1.0"
__all__ = [
    "EdgePopup",
    "Init",
    "PixelModel",
    "RstHubError",
    "ThreatModel",
    "Ticket",
    "autoattack",
    "bandits",
    "clean_accuracy",
    "create_model",
    "cw_l2",
    "cw_linf",
    "fgsm",
    "fgsm_rs",
    "from_pretrained",
    "honesty_flags",
    "pgd",
    "robust_accuracy",
    "robustbench_model",
    "square",
    "transfer_matrix",
]
