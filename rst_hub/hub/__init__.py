"""Hub: tickets from and to the Hugging Face Hub, its listing, and timm's way to a ticket.

May import: every other room but runs.
"""

import timm as timm  # first, as in rst_hub.networks

from .listing import list_models as list_models
from .loading import from_pretrained as from_pretrained
from .loading import r2s_from_pretrained as r2s_from_pretrained
from .loading import robustbench_model as robustbench_model
from .push import push_to_hub as push_to_hub
