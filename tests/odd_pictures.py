"""A folder of odd pictures, made by the tests: modes, sizes, suffixes, metadata, bombs; and what is right for each."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 12
GREY = 100
"""Every picture that can be read is of this grey, in the range of 8 bits."""


def make_odd_pictures(folder: Path) -> dict[str, str | None]:
    """Write the pictures; return by file name what is said of one that is refused, and None of one that is read."""
    folder.mkdir(parents=True)
    outcome: dict[str, str | None] = {}

    def plain(mode: str = "RGB", size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
        return Image.new("RGB", size, (GREY, GREY, GREY)).convert(mode)

    def put(name: str, image: Image.Image | bytes, refused: str | None = None, **how: object) -> None:
        if isinstance(image, bytes):
            (folder / name).write_bytes(image)
        else:
            image.save(folder / name, **how)
        outcome[name] = refused

    # modes
    put("rgb.png", plain())
    put("grey.png", plain("L"))
    put("grey-alpha.png", plain("LA"))
    put("alpha.png", plain("RGBA"))
    palette = plain().quantize(4)
    put("palette.png", palette)
    put("palette-transparent.png", palette, transparency=b"\x00\xff")
    put("sixteen-bits.png", Image.fromarray(np.full((SIDE, SIDE), GREY * 257, np.uint16)))
    put("cmyk.tif", Image.new("CMYK", (SIDE, SIDE), (0, 0, 0, 255 - GREY)))
    put("float.tif", Image.fromarray(np.full((SIDE, SIDE), 0.4, np.float32)), "floating-point pixels")
    put("beyond.tif", Image.fromarray(np.full((SIDE, SIDE), 70_000, np.int32)), "beyond 16 bits")
    put("negative.tif", Image.fromarray(np.full((SIDE, SIDE), -1, np.int32)), "beyond 16 bits")
    # sizes
    put("one-pixel.png", plain(size=(1, 1)))
    put("wide.png", plain(size=(60, 20)))
    put("thin.png", plain(size=(1, 2000)), "no middle square")
    # suffixes
    put("upper.PNG", plain(), format="PNG")
    put("lies.jpg", plain(), format="PNG")  # what a file is called says nothing of what it is
    put("photo.jpeg", plain(), quality=95)
    put("photo.webp", plain(), lossless=True)
    put("photo.gif", palette)
    put("photo.bmp", plain())
    put("text.png", b"no picture at all", "cannot identify")
    put("empty.png", b"", "cannot identify")
    whole = (folder / "photo.jpeg").read_bytes()
    put("cut.jpg", whole[: len(whole) // 2], "cannot be decoded")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
    put("pointer.jpg", pointer, "git lfs pull")
    # metadata
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held sideways
    put("turned.jpg", plain(size=(60, 20)), exif=turned, quality=95)
    put("broken-metadata.jpg", _with_broken_metadata(whole), "cannot be decoded")
    # bombs
    put("bomb.png", _one_bit_png(14_000), "DecompressionBombError")
    put("text-bomb.png", _with_a_long_text((folder / "rgb.png").read_bytes()), "cannot be decoded")
    return outcome


def _with_broken_metadata(jpeg: bytes) -> bytes:
    """Return a JPEG whose Exif block says that its directory lies far behind its end."""
    block = b"Exif\0\0" + b"MM\0\x2a" + struct.pack(">I", 8) + struct.pack(">HHHII", 1, 0x0112, 3, 2**31, 2**31)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + jpeg[2:]


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _one_bit_png(side: int) -> bytes:
    """Return a black picture of side x side pixels in some 25 KB."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    rows = zlib.compress(bytes((side // 8 + 2) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + header + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _with_a_long_text(png: bytes) -> bytes:
    """Return a picture with a comment that unpacks to 64 MiB."""
    text = _chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(64 * 2**20), 9))
    return png[:33] + text + png[33:]
