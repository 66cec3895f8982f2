"""Evaluation: clean and robust accuracy, transfer, and signs of gradient masking.

May import: attacks.
"""

from .accuracy import clean_accuracy as clean_accuracy
from .accuracy import robust_accuracy as robust_accuracy
from .sanity import honesty_flags as honesty_flags
from .transfer import transfer_matrix as transfer_matrix
