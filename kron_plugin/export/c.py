"""A trained model as one C99 file and its header, without dependencies and without allocation.

The functions are those of pieces.c; this file chooses them, and writes the tables and constants.
In C the two parts of a complex unit are neighbours, so what torch has as [Re ; Im] is moved.
"""

import re
from contextlib import ExitStack
from pathlib import Path
from string import Template
from typing import Any, Dict, List, Tuple

import torch
from torch import Tensor

from ..checks import require
from ..files import atomic_write
from ..modules.factors import format_factors
from ..modules.layer import KronLayer
from ..ops.kron.flat import flatten
from ..trained import Trained
from . import files, require_exportable

PIECES = Path(__file__).with_name("pieces.c")
INTERFACE = Path(__file__).with_name("interface.h")
CALLED = {"lstm": ["sigmoid", "gate"], "gru": ["sigmoid", "gate"]}  # by the steps of these cells
READ = "/* Read one input, and write the output after it unless output is NULL."
FEATURES = {  # the words of interface.h for inputs of features
    "declaration": "float x[NAME_INPUTS] = {0};",
    "input": "x",
    "step": f"""{READ} */
void name_step(name_state *state, const float *x, float *output);""",
}
SYMBOL = {
    "declaration": "int symbol = 0;",
    "input": "symbol",
    "step": f"""{READ} Returns 0; or
   -1 if the symbol is not from 0 to NAME_INPUTS - 1, and nothing has changed. */
int name_step(name_state *state, int symbol, float *output);""",
}


def export(model: Trained, output: Path) -> List[Path]:
    """Write NAME.c and NAME.h for an output NAME.c. The names in them begin with NAME.

    Returns:
        The files written.

    Raises:
        ValueError: NAME is no name in C, or there are no C functions for the model.
    """
    source, header = files("c", output)
    name = source.stem
    program = _Program(model)
    with ExitStack() as stack:  # both, or neither
        for path, text in {source: program.source(), header: program.header()}.items():
            text = text.replace("NAME_", f"{name.upper()}_").replace("name_", f"{name}_")
            text = text.replace("name.h", f"{name}.h")
            stack.enter_context(atomic_write(path)).write_text(text, encoding="ascii")
    return [source, header]


class _Program:
    """The two files of a model, with name_ and NAME_ for its name."""

    @torch.no_grad()
    def __init__(self, model: Trained) -> None:
        require_exportable(model)
        self.model = model
        self.layers: List[KronLayer] = list(model.cell.layers)  # type: ignore[arg-type]
        self.layer = self.layers[0]  # the others have other inputs, and the same options
        self.cell = self.layer.recurrence.cell
        self.sizes = self.layer.factor_sizes[::-1]  # a product begins with the last factor
        self.parts = 2 if self.layer.complex else 1
        self.reads = str(getattr(model.readout, "reads", "parts"))
        require(
            self.reads == "parts" or self.parts == 2,
            f"the readout reads {self.reads} of real units, which have no parts",
        )
        self.pieces = self._pieces()
        self.tables = {name: table.float() for name, table in self._tables().items()}
        require(
            all(bool(table.isfinite().all()) for table in self.tables.values()),
            "the model holds a NaN, an infinity, or a number too large for float32",
        )

    @property
    def is_in_pairs(self) -> bool:
        """Whether all factors are 2x2."""
        return set(self.sizes) == {(2, 2)}

    def _pieces(self) -> List[str]:
        """The pieces of NAME.c.

        Raises:
            ValueError: one of them is missing.
        """
        cell, field = self.cell.name, "complex" if self.layer.complex else "real"
        factors = "2x2" if self.is_in_pairs else "any"
        names = [
            *("tables", *([] if self.is_in_pairs else ["sizes"])),
            *(f"{factors} {field}", f"product of {factors}", "add product"),
            *CALLED.get(cell, [f"{self.layer.activation} {field}"]),
            *(f"step {cell}", *(["moduli"] if self.reads != "parts" else [])),
            *(f"read {self.reads}", "reset", "advance"),
            f"input {'symbol' if self.model.task.spec.tokens else 'features'}",
        ]
        known = _known_pieces()
        for name in names:
            require(name in known, f"{PIECES.name} has no {name!r}, which this model needs")
        return [known[name] for name in names]

    def _tables(self) -> Dict[str, Tensor]:
        """All numbers of the model, by their names in C."""
        tables: Dict[str, Tensor] = {}
        for i, layer in enumerate(self.layers):
            weight = layer.weight.unflatten(1, (self.cell.products, -1)).transpose(0, 1)
            weight = self._in_units(weight, 1) if i > 0 else weight
            moves_moduli = self.cell.activations[layer.activation].moves_moduli
            bias = layer.offsets()
            tables[f"weight_{i}"] = self._in_units(weight, 2)
            tables[f"factors_{i}"] = torch.stack([flatten(w[::-1]) for w in layer.products()])
            tables[f"bias_{i}"] = bias if moves_moduli else self._in_units(bias, 0)
            start = layer.initial_state(1)[0][0]
            if start.any():
                tables[f"start_{i}"] = self._in_units(start, 0)
        readout: Any = self.model.readout
        width = 0 if self.reads == "moduli" else self.layer.output_size
        parts, moduli = readout.weight.t().tensor_split([width])
        tables["readout_parts"] = self._in_units(parts, 0)
        tables["readout_moduli"] = moduli
        tables["readout_bias"] = readout.bias
        return {name: table for name, table in tables.items() if table.numel()}

    def _in_units(self, table: Tensor, axis: int) -> Tensor:
        """An axis of all real parts, then all imaginary ones, unit after unit."""
        if self.parts == 1 or not table.numel():
            return table
        return table.unflatten(axis, (2, -1)).transpose(axis, axis + 1).flatten(axis, axis + 1)

    @property
    def state(self) -> Dict[str, Tuple[int, int]]:
        """The arrays of a state. Those of products may need more numbers than h has: rectangular
        factors may make more units at first. With one product, h itself is one of them."""
        units = [self.layer.hidden_size]
        for p, q in self.sizes:
            units.append(units[-1] // q * p)
        most, layers = self.parts * max(units), len(self.layers)
        if self.cell.products == 1:
            return {"h": (layers, most), "scratch": (1, most)}
        parts = dict.fromkeys(self.cell.state, (layers, self.layer.output_size))
        return {**parts, "scratch": (3, most)}

    def header(self) -> str:
        """NAME.h, for those who use the model."""
        cell, layer, task = self.model.cell, self.layer, self.model.task
        kind = "complex" if layer.complex else "real"
        layers = f"{len(self.layers)} layers of " if len(self.layers) > 1 else ""
        reads = f", reads {self.reads}" if self.reads != "parts" else ""
        sizes = 0 if self.is_in_pairs else 2 * len(self.sizes)
        activation = f", {layer.activation}" if layer.activation else ""
        arrays = [f"    float {name}[{n}][{m}];" for name, (n, m) in self.state.items()]
        words = {
            "task": _plain(": ".join(filter(None, (task.title, _setting(task))))),
            "cell": f"{cell.title}, {layers}{layer.hidden_size} {kind} units{activation}{reads}",
            "factors": format_factors(layer.factor_sizes),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "recurrent": cell.recurrent_parameters(),
            "constants": 4 * (sum(table.numel() for table in self.tables.values()) + sizes),
            "bytes": 4 * sum(n * m for n, m in self.state.values()),
            "inputs": layer.input_size,
            "outputs": len(self.tables["readout_bias"]),
            "arrays": "\n".join(arrays),
            **(SYMBOL if task.spec.tokens else FEATURES),
        }
        return Template(INTERFACE.read_text(encoding="ascii")).substitute(words)

    def source(self) -> str:
        """NAME.c."""
        words = {
            "layers": len(self.layers),
            "units": self.layer.hidden_size,
            "parts": self.parts,
            "factors": len(self.sizes),
            "entries": self.parts * sum(p * q for p, q in self.sizes),
            "p_sizes": ", ".join(str(p) for p, _ in self.sizes),
            "q_sizes": ", ".join(str(q) for _, q in self.sizes),
            "tables": "\n\n".join(_table(name, table) for name, table in self.tables.items()),
            "rows": ",\n".join(self._row(i) for i in range(len(self.layers))),
        }
        return Template("\n\n".join(self.pieces)).substitute(words) + "\n"

    def _row(self, i: int) -> str:
        names = (f"{kind}_{i}" for kind in ("weight", "factors", "bias", "start"))
        pointers = ", ".join(name if name in self.tables else "NULL" for name in names)
        return f"    {{{pointers}, {self.layers[i].input_size}}}"


def _setting(task: Any) -> str:
    """The task with its options, such as "copy memory, T = 100"."""
    options = {key: value for key, value in vars(task.cfg).items() if value is not None}
    if "data" in options:
        options["data"] = Path(options["data"]).name
    return task.setting(options)


def _plain(text: str) -> str:
    """A text without what would end a comment or is not ASCII."""
    return re.sub(r"[^\w ,.:=()+-]", "_", text, flags=re.ASCII)


def _known_pieces() -> Dict[str, str]:
    """The pieces in pieces.c by their names."""
    _, *pieces = re.split(r"^//// (.*)\n", PIECES.read_text(encoding="ascii"), flags=re.M)
    named = zip(pieces[::2], pieces[1::2], strict=True)
    return {name: text.strip() for names, text in named for name in names.split(", ")}


def _table(name: str, table: Tensor) -> str:
    """A table in C. The digits of a number are the fewest that make the same float."""
    numbers = [f"{number!s}f" for number in table.flatten().numpy(force=True)]
    lines = [", ".join(numbers[i : i + 6]) for i in range(0, len(numbers), 6)]
    sizes = " * ".join(map(str, table.shape))
    body = ",\n    ".join(lines)
    return f"static const float {name}[{sizes}] = {{\n    {body}\n}};"
