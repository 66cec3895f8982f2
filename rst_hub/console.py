"""What is printed reaches every terminal, pipe and file, whatever it is encoded in."""

import io
import sys


def print_anything() -> None:
    """Let stdout and stderr take any text: what their encoding lacks is written as its number, as in Python's strings.

    Names of files and labels may hold every character, and half ones where a name is not UTF-8, while a terminal's
    encoding (cp1252 on Windows, ascii in a container) may not, and Python would end the program. Every command calls
    this first. The streams of a notebook or of a test take any text already and are left alone.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
