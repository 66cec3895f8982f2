"""Measure a ticket, an R2S or a dense model under attack (paper, sections 4 and 6.3).

    python recipes/benchmark.py --ticket FOLDER          PGD-20 on two losses, Square, honesty flags
    accelerate launch recipes/benchmark.py --ticket org/name --attacks pgd20,cw_l2,autoattack --eps 8,12
    python recipes/benchmark.py --help                   every setting

What it does is in rst_hub/runs/benchmark.py.
"""

from rst_hub.runs.commands import leave

if __name__ == "__main__":
    leave("benchmark")
