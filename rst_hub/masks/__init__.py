"""Masks: scores to masks, and masks to bytes.

May import: networks.
"""

from .edge_popup import EdgePopup as EdgePopup
from .packed import PackedMasks as PackedMasks
