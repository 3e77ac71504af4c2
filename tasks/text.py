"""Reading text and its SentencePiece tokenizer, which is trained once into the data folder."""

from io import BytesIO
from pathlib import Path
from typing import Dict, Optional

import sentencepiece

from kron_plugin.checks import SPLITS, require
from kron_plugin.files import finished

VOCAB_TYPES = ("char", "unigram", "bpe")
SPACE = "▁"  # what SentencePiece writes for a blank
UNKNOWN = "▅"  # and, while it trains, for what it does not know
LONGEST = 1000  # characters of a line that it trains on at once; longer than 4192 bytes it drops


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
    for symbol in (SPACE, UNKNOWN):
        require(
            symbol not in text,
            f"{path}: holds the character {symbol!r}, which SentencePiece keeps for itself",
        )
    return text


def load_tokenizer(
    folder: Path, texts: Dict[str, str], vocab_type: str = "char", vocab_size: Optional[int] = None
) -> sentencepiece.SentencePieceProcessor:
    """The folder's tokenizer, trained on the training text when it is first asked for.

    It is reversible: blanks and ends of line are kept, the latter as a symbol of their own, and
    every character of any split is in the vocabulary.

    Raises:
        ValueError: it cannot be trained, written, or does not fit the text.
    """
    require(vocab_type in VOCAB_TYPES, f"--vocab-type={vocab_type}: choose one of {VOCAB_TYPES}")
    if vocab_type == "char":
        require(vocab_size is None, "--vocab-size: goes with --vocab-type unigram or bpe")
        path = folder / "char.model"
    else:
        require(
            vocab_size is not None and vocab_size >= 1,
            f"--vocab-type {vocab_type} needs --vocab-size, a number of symbols",
        )
        path = folder / f"{vocab_type}-{vocab_size}.model"
    if not path.exists():
        model = _train(texts, vocab_type, vocab_size)
        try:
            with finished(path) as unfinished:
                unfinished.write_bytes(model)
        except OSError as error:
            raise ValueError(f"{path}: the tokenizer cannot be written: {error}") from error
    try:
        tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path}: not a SentencePiece model; remove it to train anew") from error
    for split, text in texts.items():
        require(
            tokenizer.unk_id() not in tokenizer.encode(text),
            f"{path}: does not know all characters of {split}.txt; remove it to train anew",
        )
    return tokenizer


def _train(texts: Dict[str, str], vocab_type: str, vocab_size: Optional[int]) -> bytes:
    alphabet = set().union(*texts.values()) - {" ", "\n"}
    lines = (line for line in texts["train"].split("\n") if line)
    private = map(chr, range(0xE000, 0xF900))
    model = BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(
                line[i : i + LONGEST] for line in lines for i in range(0, len(line), LONGEST)
            ),
            model_writer=model,
            model_type=vocab_type,
            vocab_size=vocab_size or len(alphabet) + 3,
            hard_vocab_limit=False,
            required_chars="".join(sorted(alphabet)),
            user_defined_symbols=["\n"],
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
