"""rst-hub: robust scratch tickets, subnetworks of random networks, as timm models."""

from . import entrypoint as entrypoint  # registers ``rst`` with timm
from .attacks import ThreatModel, fgsm, fgsm_rs, pgd
from .errors import RstHubError
from .evaluate import clean_accuracy, robust_accuracy
from .hub import from_pretrained
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
    "clean_accuracy",
    "create_model",
    "fgsm",
    "fgsm_rs",
    "from_pretrained",
    "pgd",
    "robust_accuracy",
]
