"""What bytes are, by how they begin."""

from __future__ import annotations

__all__ = ["content_extension", "file_type"]

# Each format's specification has its signature; Wikipedia's list of file signatures has them all.
_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"II*\x00", "tif"),
    (b"MM\x00*", "tif"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "jp2"),
    (b"fLaC", "flac"),
    (b"OggS", "ogg"),
    (b"ID3", "mp3"),
    (b"\xff\xfb", "mp3"),
    (b"\xff\xf3", "mp3"),
    (b"\xff\xf1", "aac"),
    (b"\xff\xf9", "aac"),
    (b"\x93NUMPY", "npy"),
    (b"%PDF-", "pdf"),
    (b"\x1a\x45\xdf\xa3", "mkv"),
)
_RIFF = {b"WEBP": "webp", b"WAVE": "wav", b"AVI ": "avi"}
_FTYP = {b"avif": "avif", b"avis": "avif", b"heic": "heic", b"M4A ": "m4a"}  # other brands are films

_FILES: tuple[tuple[int, bytes, str], ...] = (  # of the byte at which it is
    (0, b"\x1f\x8b", "a gzip file"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd file"),
    (0, b"BZh", "a bzip2 file"),
    (0, b"\xfd7zXZ\x00", "an xz file"),
    (0, b"\x04\x22\x4d\x18", "an lz4 file"),
    (0, b"PK\x03\x04", "a zip file"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z file"),
    (0, b"PAR1", "a Parquet file"),
    (0, b"ARROW1", "an Arrow file"),
    (0, b"\xff\xff\xff\xff", "a stream of Arrow"),
    (0, b"SQLite format 3\x00", "an SQLite database"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (0, b"Obj\x01", "an Avro file"),
    (0, b"ORC", "an ORC file"),
    (0, b"\x80\x04\x95", "a pickle of Python"),
    (0, b"\x80\x05\x95", "a pickle of Python"),
    (0, b"\xff\xfe", "text in UTF-16"),
    (0, b"\xfe\xff", "text in UTF-16"),
    (257, b"ustar", "a tar archive"),
)


def file_type(head: bytes) -> str | None:
    """What a file is, by its first 512 bytes, for a message: "a gzip file"; None if they do not show it."""
    for at, magic, what in _FILES:
        if head[at:].startswith(magic):
            return what
    extension = content_extension(head)
    return None if extension is None else f"a file of {extension}"


def content_extension(data: bytes) -> str | None:
    """The usual extension of an image, a sound or a film, by its first bytes; None if they show none."""
    for beginning, extension in _BEGINNINGS:
        if data.startswith(beginning):
            return extension
    if data.startswith(b"RIFF"):
        return _RIFF.get(data[8:12])
    if data.startswith(b"BM") and int.from_bytes(data[2:6], "little") == len(data):
        return "bmp"
    if data[4:8] == b"ftyp":
        return _FTYP.get(data[8:12], "mp4")
    return None
