"""Measure how attacks transfer between tickets (paper, sections 6.1 and E): a matrix and a heat map.

    python recipes/transfer.py --tickets FOLDER          all tickets of a folder
    python recipes/transfer.py --tickets FOLDER --paper-protocol
    python recipes/transfer.py --help                    every setting

What it does is in rst_hub/runs/transfer.py.
"""

from rst_hub.runs.commands import leave

if __name__ == "__main__":
    leave("transfer")
