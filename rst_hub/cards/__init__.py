"""Cards: a folder's measured results to its README.md. With :mod:`rst_hub.hub` the only room importing huggingface_hub.

May import: tickets, evaluation, attacks.
"""

from .. import networks as networks  # first: it imports timm, with which rst_hub registers by this room's files
from .card import write_card as write_card
