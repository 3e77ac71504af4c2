"""Read text, and train its SentencePiece tokenizer, which is kept in the cache."""

import hashlib
import logging
from io import BytesIO
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import sentencepiece

from kron_plugin.cache import cache_folder, kept
from kron_plugin.checks import SPLITS, require

logger = logging.getLogger(__name__)

VOCAB_TYPES = ("char", "unigram", "bpe")
LONGEST = 1000  # characters of a training line; SentencePiece drops lines above 4192 bytes
FORMAT = "1"  # version of how tokenizers are trained

# SentencePiece writes these for a blank, for an unknown symbol and between sentences. In texts they
# are replaced by the last characters of Unicode's private use.
KEPT = "▁▅\x1f"
STAND_INS = "\U0010fffb\U0010fffc\U0010fffd"
_hidden, _shown = str.maketrans(KEPT, STAND_INS), str.maketrans(STAND_INS, KEPT)


class Tokenizer(sentencepiece.SentencePieceProcessor):
    """From text to symbols and back, without loss.

    Raises:
        ValueError: the model is not one of SentencePiece.
    """

    def __init__(self, model: bytes) -> None:
        super().__init__()
        try:
            self.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise ValueError("not a SentencePiece model") from error

    def __reduce__(self) -> Tuple[type, Tuple[bytes]]:
        return type(self), (self.serialized_model_proto(),)

    # SentencePiece's own methods take more types of arguments.
    def encode(self, text: str, **kwargs: Any) -> List[int]:  # type: ignore[override]
        return super().encode(text.translate(_hidden), **kwargs)

    def decode(self, symbols: List[int], **kwargs: Any) -> str:  # type: ignore[override]
        return super().decode(symbols, **kwargs).translate(_shown)

    def pieces(self) -> List[str]:
        """The symbols, as SentencePiece writes them."""
        return [self.id_to_piece(i) for i in range(self.vocab_size())]

    def unknown(self, text: str) -> str:
        """The characters of a text that it cannot represent, as a message lists them, or ""."""
        found = [repr(c) for c in sorted(set(text)) if self.unk_id() in self.encode(c)]
        more = f" and {len(found) - 10} more" if len(found) > 10 else ""
        return ", ".join(found[:10]) + more


def load_text(folder: Path) -> Dict[str, str]:
    """The text of every split, exactly as `train.txt`, `valid.txt` and `test.txt` hold it.

    Raises:
        ValueError: a file is missing, empty or not text; the message names it.
    """
    require(folder.is_dir(), f"{folder}: no such folder; expected one with train.txt, valid.txt …")
    if (folder / "ptb.train.txt").is_file() and not (folder / "train.txt").is_file():
        raise ValueError(
            f"{folder}: holds Mikolov's ptb.*.txt, whose lines are padded with blanks; clean them"
            f" by `kron-data prepare ptb --source {folder} --dest FOLDER` and use that folder"
        )
    return {split: read_text(folder / f"{split}.txt") for split in SPLITS}


def read_text(path: Path) -> str:
    """A text file's content.

    Raises:
        ValueError: the file is missing, empty or not UTF-8 text.
    """
    require(path.is_file(), f"{path}: no such file")
    content = path.read_bytes()
    require(bool(content.strip()), f"{path}: holds no text")
    require(b"\0" not in content, f"{path}: holds a NUL byte at {content.find(0)}; expected text")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    for symbol in STAND_INS:
        require(
            symbol not in text,
            f"{path}: holds the character {symbol!r}, which is reserved",
        )
    return text


def load_tokenizer(
    folder: Path, texts: Dict[str, str], vocab_type: str = "char", vocab_size: Optional[int] = None
) -> Tokenizer:
    """The tokenizer of these texts, trained on the first call and then read from the cache.

    It is reversible: it keeps blanks and ends of line, which are a symbol of their own, and its
    vocabulary has every character of every split. A model in the folder itself, such as
    `char.model` or `bpe-500.model`, is used instead: checkpoints may depend on it.

    Raises:
        ValueError: the tokenizer cannot be trained or kept, or does not fit the text.
    """
    require(vocab_type in VOCAB_TYPES, f"--vocab-type={vocab_type}: choose one of {VOCAB_TYPES}")
    if vocab_type == "char":
        require(vocab_size is None, "--vocab-size: goes with --vocab-type unigram or bpe")
    else:
        require(
            vocab_size is not None and vocab_size >= 1,
            f"--vocab-type {vocab_type} needs --vocab-size, a number of symbols",
        )
    name = f"{vocab_type}-{vocab_size}" if vocab_size else vocab_type
    own = folder / f"{name}.model"
    if own.exists():
        try:
            return _fitting(own, texts)
        except ValueError as error:
            raise ValueError(
                f"{own}: {error}; checkpoints may depend on it; once it is gone, another is trained"
            ) from error
    cached = cache_folder() / "tokenizers" / f"{_key(texts, name)}.model"
    if cached.exists():
        try:
            return _fitting(cached, texts)
        except ValueError as error:
            logger.warning("%s: damaged, made anew: %s", cached, error)
    model = _train(texts, vocab_type, vocab_size)
    with kept(cached) as unfinished:
        unfinished.write_bytes(model)
    return _fitting(cached, texts)


def _fitting(path: Path, texts: Dict[str, str]) -> Tokenizer:
    """The tokenizer in a file; it must know all characters of the texts."""
    try:
        tokenizer = Tokenizer(path.read_bytes())
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error
    for split, text in texts.items():
        unknown = tokenizer.unknown(text)
        require(not unknown, f"does not know {unknown} of {split}.txt")
    return tokenizer


def _key(texts: Dict[str, str], name: str) -> str:
    """A hash of everything that a tokenizer depends on."""
    alphabet = "".join(sorted(set().union(*texts.values())))
    parts = (FORMAT, name, texts["train"], alphabet)
    hashes = (hashlib.sha256(part.encode()).digest() for part in parts)
    return hashlib.sha256(b"".join(hashes)).hexdigest()


def _train(texts: Dict[str, str], vocab_type: str, vocab_size: Optional[int]) -> bytes:
    texts = {split: text.translate(_hidden) for split, text in texts.items()}
    alphabet = set().union(*texts.values()) - {"\n"}
    lines = [line for line in texts["train"].split("\n") if line]
    # The vocabulary has only characters of the training lines.
    lines += sorted(alphabet.difference(texts["train"]))
    least = len(alphabet) + 2  # with the end of line and the unknown symbol
    require(
        vocab_size is None or vocab_size >= least,
        f"--vocab-size={vocab_size}: must be at least {least}, a symbol for each character",
    )
    private = map(chr, range(0xF0000, 0x10FFF0))
    model = BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(
                line[i : i + LONGEST] for line in lines for i in range(0, len(line), LONGEST)
            ),
            model_writer=model,
            model_type=vocab_type,
            vocab_size=vocab_size or least + 1,
            hard_vocab_limit=False,
            character_coverage=1.0,  # keep rare characters
            # SentencePiece drops carriage returns at the ends of lines.
            user_defined_symbols=["\n"] + ["\r"] * ("\r" in alphabet),
            # Decoding must restore the text, so nothing is added, dropped or changed. No symbol may
            # look like text (PTB itself contains "<unk>").
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            unk_piece=next(c for c in ("⁇", *private) if c not in alphabet),
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            minloglevel=2,
        )
    except (RuntimeError, ValueError) as error:  # ValueError: not a number for SentencePiece
        reason = str(error).splitlines()[0]
        culprit = f"--vocab-size={vocab_size}" if vocab_size else f"--vocab-type={vocab_type}"
        raise ValueError(f"{culprit}: SentencePiece says {reason}") from error
    return model.getvalue()
