"""Makes the corpora of a suite from real text and photographs, once; later runs find them."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import corpus_linux
from benchmarks.corpora import META, Corpus, load, seal

SEQ = 2048
EOS = 256
IMAGES = (".jpg", ".jpeg", ".png", ".webp")
_HEADER = bytes.fromhex("ffd8ffe000104a46494600010100000100010000")
PHOTO_FOLDERS = ("/usr/share/backgrounds", "/usr/share/wallpapers")


class Maker:
    """Corpora below `data`, from a JSONL file of texts and a folder of photographs."""

    def __init__(self, data: Path, text: str | None, photos: str | None) -> None:
        self.data, self._text, self._photos = data, text, photos

    def text(self) -> str:
        """The JSONL file with a "text" in each line."""
        if self._text:
            return self._text
        path = self.data / "linux.jsonl"
        if not path.exists():
            self.data.mkdir(parents=True, exist_ok=True)
            corpus_linux.main(f"{path}.part")
            os.replace(f"{path}.part", path)
        return str(path)

    def photos(self) -> list[str]:
        """The photographs to crop, large enough."""
        roots = [self._photos] if self._photos else list(PHOTO_FOLDERS)
        found = [
            os.path.join(folder, name)
            for root in roots
            for folder, _, names in os.walk(root)
            for name in sorted(names)
            if name.lower().endswith(IMAGES) and os.path.getsize(os.path.join(folder, name)) > 300_000
        ]
        if not found:
            raise SystemExit(
                "no photographs: apt-get install --no-install-recommends gnome-backgrounds mate-backgrounds "
                "plasma-workspace-wallpapers, or give --corpus-images"
            )
        return sorted(found)

    def _texts(self, limit: int) -> Iterator[tuple[str, str]]:
        """(id, text) up to `limit` bytes of text."""
        seen = 0
        with open(self.text(), encoding="utf-8") as file:
            for number, line in enumerate(file):
                row = json.loads(line)
                text = row["text"]
                seen += len(text.encode())
                if seen > limit and number:
                    return
                yield str(row.get("id", number)), text

    def _made(self, name: str, make: Callable[[Path], Corpus]) -> Corpus:
        folder = self.data / "corpora" / name
        if not (folder / META).exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            print(f"making the corpus {name} ...", flush=True)
            make(folder)
        return load(folder)

    def documents(self, size: int) -> Corpus:
        """Documents of `size` bytes in all."""

        def make(folder: Path) -> Corpus:
            _write_jsonl(folder / "documents.jsonl", self._texts(size))
            return seal(folder, "documents")

        return self._made(f"documents-{size >> 20}M", make)

    def lines(self, count: int) -> Corpus:
        """`count` short documents: pieces of 200 characters."""

        def pieces() -> Iterator[tuple[str, str]]:
            number = 0
            for _, text in self._texts(1 << 40):
                for start in range(0, len(text), 200):
                    if number == count:
                        return
                    yield f"{number:08d}", text[start : start + 200]
                    number += 1

        def make(folder: Path) -> Corpus:
            _write_jsonl(folder / "documents.jsonl", pieces())
            return seal(folder, "documents")

        return self._made(f"lines-{count}", make)

    def tokens16(self, size: int) -> Corpus:
        """The bytes of the texts as uint16 tokens, an end-of-text token after each text."""

        def make(folder: Path) -> Corpus:
            _write_jsonl(folder / "documents.jsonl", self._texts(size))
            with open(folder / "tokens.bin", "wb") as file:
                for _, text in self._texts(size):
                    np.append(np.frombuffer(text.encode(), np.uint8).astype("<u2"), np.uint16(EOS)).tofile(
                        file
                    )
            return seal(folder, "tokens", dtype="uint16", block=SEQ + 1, tokenizer="bytes")

        return self._made(f"tokens16-{size >> 20}M", make)

    def tokens32(self, size: int) -> Corpus:
        """The texts in the tokens of a BPE of 70,000, trained on every sixth of them: uint32."""

        def make(folder: Path) -> Corpus:
            from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

            texts = [text for _, text in self._texts(size)]
            tokenizer = Tokenizer(models.BPE())
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
            trainer = trainers.BpeTrainer(
                vocab_size=70_000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
            )
            tokenizer.train_from_iterator(texts[::6], trainer)
            # Small corpora give few merges; token ids must need 32 bits all the same.
            tokenizer.add_tokens([f"<{n}>" for n in range(max(0, 70_001 - tokenizer.get_vocab_size()))])
            path = str(folder / "bpe.json")
            tokenizer.save(path)
            with open(folder / "tokens.bin", "wb") as file:
                for start in range(0, len(texts), 256):
                    for found in tokenizer.encode_batch_fast(texts[start : start + 256]):
                        np.array([*found.ids, EOS], "<u4").tofile(file)
            _write_jsonl(folder / "documents.jsonl", self._texts(size))
            return seal(folder, "tokens", dtype="uint32", block=SEQ + 1, tokenizer=path)

        return self._made(f"tokens32-{size >> 20}M", make)

    def images(self, count: int, size: int) -> Corpus:
        """`count` different crops of photographs, JPEGs of about `size` bytes; a class per photograph."""

        def make(folder: Path) -> Corpus:
            photos = self.photos()[:96]
            for number, path in enumerate(photos):
                target = folder / "images" / f"{number:03d}"
                target.mkdir(parents=True)
                share = count // len(photos) + (number < count % len(photos))
                for crop, data in enumerate(_crops(path, share, size, random.Random(number))):
                    (target / f"{crop:05d}.jpg").write_bytes(data)
            return seal(folder, "images")

        return self._made(f"images-{count}x{size >> 10}K", make)

    def noise(self, count: int, size: int) -> Corpus:
        """`count` files of about `size` random bytes behind the header of a JPEG: nobody decodes them."""

        def make(folder: Path) -> Corpus:
            random = np.random.default_rng(0)
            for number in range(count):
                target = folder / "images" / f"{number % 96:03d}"
                target.mkdir(parents=True, exist_ok=True)
                data = random.bytes(int(size * random.uniform(0.7, 1.3)))
                (target / f"{number:06d}.jpg").write_bytes(_HEADER + data)
            return seal(folder, "images")

        return self._made(f"noise-{count}x{size >> 10}K", make)


def _write_jsonl(path: Path, texts: Iterator[tuple[str, str]]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for key, text in texts:
            row = {"id": key, "text": text, "bytes": len(text.encode())}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _crops(path: str, count: int, size: int, rng: random.Random) -> Iterator[bytes]:
    """Crops whose JPEG at quality 90 has about `size` bytes."""
    from PIL import Image

    with Image.open(path) as opened:
        photo = opened.convert("RGB")
    side = 300.0
    for _ in range(count):
        for _attempt in range(3):
            width = max(32, min(int(side), photo.width, photo.height))
            left, top = rng.randint(0, photo.width - width), rng.randint(0, photo.height - width)
            data = _jpeg(photo.crop((left, top, left + width, top + width)))
            side = min(1600.0, max(64.0, width * (size / len(data)) ** 0.5))
            if 0.6 < len(data) / size < 1.6:
                break
        yield data


def _jpeg(image: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return out.getvalue()
