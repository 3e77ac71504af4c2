"""Folders of MIDI files as data sets: read once, kept in the cache, split by a seed."""

import csv
import hashlib
import logging
from pathlib import Path
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from kron_plugin.cache import cache_folder, kept
from kron_plugin.checks import SPLITS, require
from kron_plugin.progress import progress

from .midi import MAX_STEPS_PER_BEAT, head, midi_files, parse_midi
from .rolls import KEYS, Rolls

logger = logging.getLogger(__name__)

# The defaults of the task's options; `kron-data` counts by them.
STEPS_PER_BEAT, MIDI_SPLIT, MIDI_SEED = 2, (0.7, 0.15, 0.15), 1
FORMAT = "2"  # version of the cached files, and of how rolls are made


class Prepared(NamedTuple):
    """The rolls of the MIDI files that give one, and the remarks on files as (file, remark)."""

    rolls: List[np.ndarray]
    remarks: List[Tuple[str, str]]


def has_midi(folder: Path) -> bool:
    """Whether a folder holds MIDI files, or folders of the splits."""
    return any((folder / split).is_dir() for split in SPLITS) or bool(midi_files(folder))


def load_midi(folder: Path, steps_per_beat: int, fractions: Sequence[float], seed: int) -> Rolls:
    """The sequences of every split, from MIDI files.

    Args:
        folder: has the folders train, valid and test, or files that are split at random.
        steps_per_beat: time steps in a quarter note.
        fractions, seed: how to split one folder: the shares of train, valid and test.

    Raises:
        ValueError: a split is missing or none of its files gives a roll; the message says which.
    """
    require(
        1 <= steps_per_beat <= MAX_STEPS_PER_BEAT,
        f"--steps-per-beat={steps_per_beat}: must be from 1 to {MAX_STEPS_PER_BEAT}",
    )
    if not any((folder / split).is_dir() for split in SPLITS):
        return split_rolls(prepare_midi(folder, steps_per_beat).rolls, fractions, seed, folder)
    for split in SPLITS:
        require(
            (folder / split).is_dir(),
            f"{folder / split}: no such folder; expected {', '.join(SPLITS)} beside each other",
        )
    return {split: prepare_midi(folder / split, steps_per_beat).rolls for split in SPLITS}


def split_rolls(
    rolls: List[np.ndarray], fractions: Sequence[float], seed: int, folder: Path
) -> Rolls:
    """The rolls in three parts. A folder and a seed give the same parts in every run."""
    shares = ",".join(f"{f:g}" for f in fractions)
    require(
        len(fractions) == len(SPLITS) and min(fractions) > 0 and abs(sum(fractions) - 1) < 1e-6,
        f"--midi-split {shares}: expected the shares of {', '.join(SPLITS)}, which add up to 1",
    )
    # RandomState is frozen; the newer generators may change with numpy.
    order = np.random.RandomState(seed).permutation(len(rolls))
    bounds = np.rint(np.cumsum(fractions)[:-1] * len(rolls)).astype(int)
    parts = {s: [rolls[i] for i in p] for s, p in zip(SPLITS, np.split(order, bounds), strict=True)}
    for split, part in parts.items():
        require(
            len(part) > 0,
            f"--midi-split {shares}: leaves '{split}' none of the {len(rolls)} sequences that"
            f" {folder} gives",
        )
    return parts


def prepare_midi(folder: Path, steps_per_beat: int) -> Prepared:
    """The rolls of all MIDI files in and below a folder, from the cache if it has them.

    Raises:
        ValueError: no file gives a roll.
    """
    paths = midi_files(folder)
    require(len(paths) > 0, f"{folder}: holds no MIDI files (.mid or .midi)")
    key = _key(folder, paths, steps_per_beat)
    cached = cache_folder() / "rolls" / f"{key}.npz"
    report = cached.with_suffix(".skipped.tsv")
    prepared = _load(cached)
    if prepared is None:
        prepared = _read_all(folder, paths, steps_per_beat)
        logger.info(
            "%s: %d of %d MIDI files give rolls", folder.name, len(prepared.rolls), len(paths)
        )
        _store(prepared, cached, report)
    if prepared.remarks:
        logger.warning("%s: %d remarks on files, in %s", folder, len(prepared.remarks), report)
    if not prepared.rolls:
        name, reason = prepared.remarks[0]
        raise ValueError(
            f"{folder}: none of its {len(paths)} MIDI files gives a roll; the first, {name}:"
            f" {reason}; all are in {report}"
        )
    return prepared


def _key(folder: Path, paths: List[Path], steps_per_beat: int) -> str:
    """A hash of everything that the rolls depend on."""
    digest = hashlib.sha256(f"{FORMAT} {steps_per_beat}".encode())
    for path in paths:
        name = path.relative_to(folder).as_posix().encode(errors="surrogateescape")
        digest.update(hashlib.sha256(name).digest() + hashlib.sha256(head(path)).digest())
    return digest.hexdigest()


def _read_all(folder: Path, paths: List[Path], steps_per_beat: int) -> Prepared:
    prepared = Prepared([], [])
    with progress(f"reading {folder.name}", len(paths), "files") as advance:
        for path in paths:
            name = path.relative_to(folder).as_posix()
            try:
                reading = parse_midi(head(path), steps_per_beat)
            except ValueError as error:
                remark = f"skipped: {error}"
            else:
                remark = reading.remark
                prepared.rolls.append(reading.roll)
            if remark:
                logger.warning("%s: %s", path, remark)
                prepared.remarks.append((name, remark))
            advance(1)
    return prepared


def _store(prepared: Prepared, cached: Path, report: Path) -> None:
    options: Any = {"encoding": "utf-8", "errors": "replace", "newline": ""}
    with kept(report) as unfinished, unfinished.open("w", **options) as file:
        csv.writer(file, delimiter="\t").writerows([("file", "remark"), *prepared.remarks])
    steps = np.concatenate([*prepared.rolls, np.zeros((0, KEYS), np.uint8)])
    with kept(cached) as unfinished, unfinished.open("wb") as file:
        np.savez(
            file,
            packed=np.packbits(steps, axis=1),
            lengths=np.array([len(roll) for roll in prepared.rolls], dtype=np.int64),
            remarks=np.array(prepared.remarks, dtype=str).reshape(-1, 2),
        )


def _load(cached: Path) -> Optional[Prepared]:
    if not cached.is_file():
        return None
    try:
        with np.load(cached, allow_pickle=False) as stored:
            packed, lengths, remarks = (stored[k] for k in ("packed", "lengths", "remarks"))
            steps = np.unpackbits(packed, axis=1)[:, :KEYS]
            rolls = np.split(steps, np.cumsum(lengths)[:-1]) if len(lengths) else []
    except Exception as error:  # a damaged archive can raise nearly any error
        logger.warning("%s: damaged, made anew: %s", cached, error)
        return None
    return Prepared(rolls, [(str(name), str(remark)) for name, remark in remarks])
