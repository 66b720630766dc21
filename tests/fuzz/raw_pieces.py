"""Raw bytes as a number of pieces, each behind a header of two bytes: twelve bits of length, four of anything else."""

from collections.abc import Iterable, Iterator

HEADER_BYTES = 2
_LENGTH_BITS = 12
MAX_PIECE_BYTES = 2**_LENGTH_BITS - 1


def split(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The pieces, each with the four bits; the last one may be shorter than it says."""
    start = 0
    while start + HEADER_BYTES <= len(data):
        header = int.from_bytes(data[start : start + HEADER_BYTES], "little")
        start += HEADER_BYTES
        stop = start + (header & MAX_PIECE_BYTES)
        yield header >> _LENGTH_BITS, data[start:stop]
        start = stop


def join(pieces: Iterable[tuple[int, bytes]]) -> bytes:
    """The opposite; pieces are cut at what a header can say."""
    cut = ((bits, piece[:MAX_PIECE_BYTES]) for bits, piece in pieces)
    return b"".join((bits << _LENGTH_BITS | len(piece)).to_bytes(HEADER_BYTES, "little") + piece for bits, piece in cut)
