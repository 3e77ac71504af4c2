"""Reading text, and its SentencePiece tokenizer, which is trained once and kept in the cache."""

import hashlib
import logging
from io import BytesIO
from pathlib import Path
from typing import Any, Dict, List, Optional

import sentencepiece

from kron_plugin.cache import cache_folder, kept
from kron_plugin.checks import SPLITS, require

logger = logging.getLogger(__name__)

VOCAB_TYPES = ("char", "unigram", "bpe")
LONGEST = 1000  # characters of a line that it trains on at once; longer than 4192 bytes it drops
FORMAT = "1"  # of the way in which tokenizers are trained

# What SentencePiece writes for a blank, for what it does not know, and between sentences. Texts
# that have these characters come to it with the last ones of Unicode's private use instead.
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

    # SentencePiece's own take more types of arguments.
    def encode(self, text: str, **kwargs: Any) -> List[int]:  # type: ignore[override]
        return super().encode(text.translate(_hidden), **kwargs)

    def decode(self, symbols: List[int], **kwargs: Any) -> str:  # type: ignore[override]
        return super().decode(symbols, **kwargs).translate(_shown)

    def unknown(self, text: str) -> str:
        """The characters of a text that it cannot represent, for a message; or nothing."""
        found = [repr(c) for c in sorted(set(text)) if self.unk_id() in self.encode(c)]
        more = f" and {len(found) - 10} more" if len(found) > 10 else ""
        return ", ".join(found[:10]) + more


def load_text(folder: Path) -> Dict[str, str]:
    """The text of every split, exactly as `train.txt`, `valid.txt` and `test.txt` hold it.

    Raises:
        ValueError: a file is missing, empty or no text; the message names it.
    """
    require(folder.is_dir(), f"{folder}: no such folder; expected one with train.txt, valid.txt …")
    if (folder / "ptb.train.txt").is_file() and not (folder / "train.txt").is_file():
        raise ValueError(
            f"{folder}: holds Mikolov's ptb.*.txt, whose lines are padded with blanks; clean them"
            f" by `kron-data prepare ptb --source {folder} --dest FOLDER` and give that folder"
        )
    return {split: read_text(folder / f"{split}.txt") for split in SPLITS}


def read_text(path: Path) -> str:
    """A text file's content.

    Raises:
        ValueError: the file is missing, empty or no UTF-8 text.
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
            f"{path}: holds the character {symbol!r}, which stands for another here",
        )
    return text


def load_tokenizer(
    folder: Path, texts: Dict[str, str], vocab_type: str = "char", vocab_size: Optional[int] = None
) -> Tokenizer:
    """The tokenizer of these texts: trained when it is first asked for, then from the cache.

    It is reversible: blanks and ends of line are kept, the latter as a symbol of their own, and
    every character of any split is in the vocabulary. A model that lies in the folder itself, such
    as `char.model` or `bpe-500.model`, is taken instead: checkpoints may depend on it.

    Raises:
        ValueError: it cannot be trained, kept, or does not fit the text.
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
                f"{own}: {error}; checkpoints may depend on it; without it another is trained"
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
    """The tokenizer in a file, which has to know all characters of the texts."""
    try:
        tokenizer = Tokenizer(path.read_bytes())
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error
    for split, text in texts.items():
        unknown = tokenizer.unknown(text)
        require(not unknown, f"does not know {unknown} of {split}.txt")
    return tokenizer


def _key(texts: Dict[str, str], name: str) -> str:
    """A hash of all that a tokenizer depends on."""
    alphabet = "".join(sorted(set().union(*texts.values())))
    parts = (FORMAT, name, texts["train"], alphabet)
    hashes = (hashlib.sha256(part.encode()).digest() for part in parts)
    return hashlib.sha256(b"".join(hashes)).hexdigest()


def _train(texts: Dict[str, str], vocab_type: str, vocab_size: Optional[int]) -> bytes:
    texts = {split: text.translate(_hidden) for split, text in texts.items()}
    alphabet = set().union(*texts.values()) - {"\n"}
    lines = [line for line in texts["train"].split("\n") if line]
    # The vocabulary has only what is trained on.
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
            character_coverage=1.0,  # however rare
            # It drops carriage returns from the ends of lines.
            user_defined_symbols=["\n"] + ["\r"] * ("\r" in alphabet),
            # Nothing added, dropped or changed, so that text comes back as it was; and no symbol
            # that could be mistaken for text ("<unk>" stands in PTB itself).
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            unk_piece=next(c for c in ("⁇", *private) if c not in alphabet),
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            minloglevel=2,
        )
    except (RuntimeError, ValueError) as error:  # the latter for what is no number to it
        reason = str(error).splitlines()[0]
        culprit = f"--vocab-size={vocab_size}" if vocab_size else f"--vocab-type={vocab_type}"
        raise ValueError(f"{culprit}: SentencePiece says {reason}") from error
    return model.getvalue()
