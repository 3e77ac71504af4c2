"""Let a trained model continue a piece of music, as a MIDI file and a picture, or a text."""

import logging
from pathlib import Path
from typing import Any, Callable, Dict, Optional

import numpy as np
import torch
from torch import Tensor

import kron_plugin

from ..progress import progress
from ..restore import build
from .arguments import say_written, written

kron_plugin.register()

from ..tasks.char_lm import CharLMTask  # noqa: E402  (needs register)
from ..tasks.midi import SUFFIXES, read_midi, write_midi  # noqa: E402
from ..tasks.music import MusicTask  # noqa: E402
from ..tasks.rolls import KEYS  # noqa: E402

logger = logging.getLogger(__name__)


def sample(
    checkpoint: Path,
    state: Dict[str, Any],
    data: Optional[str],
    prompt: Optional[str],
    steps: int,
    temperature: float,
    seed: int,
    output: Optional[Path],
) -> str:
    """Continue a prompt by `steps` steps; return a summary, or the text itself.

    Args:
        checkpoint, state: a checkpoint's path and its content.
        data: the folder of the training data, if not where training found them.
        prompt: a MIDI file for a model of music, text for one of text; None to start from nothing.
        temperature: below 1 likely choices become likelier, above 1 less likely.
        output: a MIDI file, with its picture as PNG beside it; or a text file.

    Raises:
        ValueError, OSError: an argument or file cannot be used; the message says why.
    """
    model, _, task = build(checkpoint, state, data)
    torch.manual_seed(seed)
    if isinstance(task, MusicTask):
        return _music(model, task, prompt, steps, temperature, output)
    if isinstance(task, CharLMTask):
        return _text(model, task, prompt, steps, temperature, output)
    raise ValueError(
        f"{checkpoint}: its task is {task.cfg._name}; models of music and char_lm can be sampled"
    )


@torch.no_grad()
def continue_prompt(model, source: Tensor, steps: int, pick: Callable[[Tensor], Tensor]) -> Tensor:
    """Read `source`, shape (T, 1, …), then pick each of `steps` inputs from the model's scores and
    read it too. Return the picked inputs, shape (steps, …)."""
    output, state = model.cell.run(source)
    picked = []
    with progress("sampling", steps, "steps") as advance:
        for _ in range(steps):
            picked.append(pick(model.readout(output[-1, 0])))
            output, state = model.cell.run(picked[-1][None, None], state)
            advance(1)
    return torch.stack(picked)


def _music(model, task, prompt, steps: int, temperature: float, output: Optional[Path]) -> str:
    if output is None or output.suffix not in SUFFIXES:
        raise ValueError(f"--output {output}: name the MIDI file to write, such as more.mid")
    from .pictures import draw_roll  # early, and only for music: needs matplotlib

    resolution = task.cfg.steps_per_beat
    start = np.zeros((1, KEYS), np.uint8)
    if prompt is not None:
        if not Path(prompt).is_file():
            raise ValueError(f"--prompt {prompt}: no such MIDI file")
        start, remark = read_midi(Path(prompt), resolution)
        if remark:
            logger.warning("--prompt %s: %s", prompt, remark)
    source = torch.from_numpy(start).float().unsqueeze(1)
    more = continue_prompt(
        model, source, steps, lambda s: torch.bernoulli(torch.sigmoid(s / temperature))
    )
    roll = np.concatenate([start, more.numpy().astype(np.uint8)])
    notes = write_midi(roll, resolution, output)
    say_written(output)
    draw_roll(roll, len(start), output.with_suffix(".png"))
    return f"{notes} notes in {len(roll)} steps"


def _text(model, task, prompt, steps: int, temperature: float, output: Optional[Path]) -> str:
    try:
        source = task.encode(prompt or "\n")
    except ValueError as error:
        raise ValueError(f"--prompt: {error}") from error

    def pick(scores: Tensor) -> Tensor:
        scores = task.without_unknown(scores)
        scores = (scores - scores.max()).double()  # so that no temperature makes them infinite
        return torch.multinomial(torch.softmax(scores / temperature, -1), 1)[0]

    more = continue_prompt(model, source.unsqueeze(1), steps, pick)
    text = (prompt or "") + task.tokenizer.decode(more.tolist())
    if output is None:
        return text
    with written(output) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    return f"{len(text)} characters"
