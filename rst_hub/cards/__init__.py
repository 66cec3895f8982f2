"""Cards: a folder's measured results to its README.md. With :mod:`rst_hub.hub` the only room importing huggingface_hub.

May import: tickets, evaluation, attacks.
"""

from .card import write_card as write_card
