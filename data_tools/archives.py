"""What a file's first bytes say it is, and the content of compressed ones, whole or an error."""

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from typing import IO, Any

COMPRESSIONS = ("gz", "zst", "xz", "bz2")
MAGIC = {
    "gz": (b"\x1f\x8b",),
    # A frame, or one that is to be skipped, with which pzstd begins.
    "zst": (b"\x28\xb5\x2f\xfd", *(bytes([0x50 + n]) + b"\x2a\x4d\x18" for n in range(16))),
    "xz": (b"\xfd7zXZ\0",),
    # A block, or the end of a file without one, after the sign of its size.
    "bz2": tuple(b"BZh%d%b" % (n, next_) for n in range(1, 10) for next_ in (b"1AY&SY", b"\x17rE8P\x90")),
    "parquet": (b"PAR1\x15",),  # and the header of a page
}
READ_BYTES = 1 << 20
DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""What a decompressor raises."""


def sniff(head: bytes) -> str | None:
    """A key of ``MAGIC`` for the first bytes of a file; None for text."""
    return next((name for name, starts in MAGIC.items() if head.startswith(starts)), None)


def decompress(file: IO[bytes], compression: str) -> IO[bytes]:
    """The content of a compressed file; raises one of ``DAMAGE`` where it ends too early or is damaged."""
    if compression == "zst":
        import pyarrow

        # Arrow tells where a stream ends too early; the usual reader of zstd takes that for the end.
        return io.BufferedReader(pyarrow.CompressedInputStream(file, "zstd"), READ_BYTES)
    return io.BufferedReader(_Streams(file, DECODERS[compression]), READ_BYTES)


def why_not(error: BaseException) -> str:
    """What is wrong with an archive, and what to do, from what its decompressor raised."""
    if "too much memory" in str(error):
        return (
            "compressed with a window over 128 MiB (zstd --long), which is not read here; compress it anew: "
            "zstd -dc --long=31 FILE | zstd -o NEW.zst"
        )
    if "ictionary mismatch" in str(error):
        return "compressed with a dictionary, which is not read here; compress it anew without one"
    return f"damaged or cut off ({error})"


class _GzipDecoder:
    """zlib's decoder of one gzip stream, with the face of those of bz2 and xz."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        content = self._inner.decompress(self._inner.unconsumed_tail + data, max_length)
        self.needs_input = not self._inner.unconsumed_tail and len(content) < max_length
        return content


DECODERS: dict[str, Callable[[], Any]] = {
    "gz": _GzipDecoder,
    "xz": lzma.LZMADecompressor,
    "bz2": bz2.BZ2Decompressor,
}


class _Streams(io.RawIOBase):
    """Compressed streams one after the other, with zeros after them as padding.

    The standard library's readers of bz2 and xz take a second stream that is damaged at its beginning for the
    end of the file, and that of gzip reads padding byte by byte.
    """

    def __init__(self, file: IO[bytes], new: Callable[[], Any]) -> None:
        self._file, self._new = file, new
        self._decoder, self._waiting = new(), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._decoder.eof:
                rest = self._decoder.unused_data.lstrip(b"\0")
                while not rest:
                    if not (part := self._file.read(READ_BYTES)):
                        return 0
                    rest = part.lstrip(b"\0")
                self._decoder, self._waiting = self._new(), rest
            data = b""
            if self._decoder.needs_input:
                data, self._waiting = self._waiting or self._file.read(READ_BYTES), b""
                if not data:
                    raise EOFError("it ends within a stream")
            if content := self._decoder.decompress(data, len(buffer)):
                buffer[: len(content)] = content
                return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()
