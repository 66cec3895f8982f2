"""Tickets: masks and what their seed cannot make, saved, loaded, drawn from together (R2S) and exported.

May import: networks, masks.
"""

from .. import networks as networks  # first: it imports timm, with which rst_hub registers by this room's files
from .pool import TicketPool as TicketPool
from .r2s import R2S as R2S
from .ticket import Ticket as Ticket
