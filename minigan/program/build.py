"""A captured step made ready to run: kernels for its nodes, memory for its results, and the machine's table.

Every address in the table is of memory that the program holds, and all are written in one place, `Builder.build`.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from minigan.backend import Array, aligned_zeros
from minigan.kernels import launch, machine, matrix
from minigan.kernels.layout import SPLIT_N, WHOLE
from minigan.kernels.objects import kernel, kernel_of
from minigan.kernels.rows import Operand, Plan, Result, Scratch
from minigan.program.capture import REQUIRE, Buffer, Call, Recorder, Ref, address
from minigan.program.chain import chained
from minigan.program.checks import part_by_part, with_backups
from minigan.program.fuse import Node, fuse, is_large, product_split, unfused
from minigan.program.layouts import in_rows
from minigan.program.loops import Address, Text, as_word, write_loop
from minigan.program.plan import (
    Life,
    Step,
    in_place,
    is_check,
    lives,
    moments,
    place,
    schedule,
)
from minigan.trace import Slot


class Options(NamedTuple):
    """How a program is made; what differs from the default serves to find faults.

    fuse: make loops and products of the calls; otherwise each runs as it does without compiling, bit for bit.
    plan: let results share memory.
    poison: fill memory with NaN as soon as its content is not needed any more.
    threads: how many may share the work.
    tf32: on a GPU, products of float32 matrices round their factors to 10 bits.
    """

    fuse: bool = True
    plan: bool = True
    poison: bool = False
    threads: int = 1
    tf32: bool = False


class Row(NamedTuple):
    """A line of the listing, and a row of the table if the machine has a kernel for it."""

    node: Node
    text: Text | None
    step: int
    in_python: bool = False

    @property
    def words(self) -> Sequence[Any] | None:
        """Those of its loop."""
        return None if self.text is None else self.text.words

    @property
    def note(self) -> str:
        """How it is run, for the listing."""
        if self.node.slices:
            return f", in {self.node.slices} slices"
        return ", Python" if self.in_python else ""


class PythonCall(NamedTuple):
    """A call of a primitive's own kernel, with the arrays it runs on."""

    call: Call
    outs: tuple[Array, ...]
    inputs: tuple[Array, ...]
    slots: dict[str, int]  # attributes that are worked out anew, and the numbers they are
    checks: bool  # whether the values of an input decide about errors


class Built(NamedTuple):
    """What `replay` runs."""

    steps: list[Any]  # (first phase, last phase + 1), or a PythonCall
    rows_until: list[int]  # how many rows are done after each step
    rows: list[Row]
    machine: Any  # or None
    table: Array
    arena: Array
    offsets: dict[Any, int]  # where in the arena each result is
    numbers: Array  # float64, those that are worked out anew in every run
    dead: list[list[tuple[int, int]]]  # per moment, the parts of the arena not needed any more
    flags: Array  # bytes of the arena that are 1 at the beginning of a run
    checks: list[tuple[int, Array]]  # rows at which a run may end, and what they look at
    backups: list[tuple[int, Array, Array]]  # rows that overwrite, what they overwrite, and the copy of it
    outputs: list[Array]


def _each(steps: Sequence[Step]) -> Iterator[Node]:
    """The nodes of steps, of chains those in them."""
    for step in steps:
        for node in step.nodes:
            yield from node.links or [node]


def needed_calls(calls: Sequence[Call], outputs: Sequence[Ref]) -> list[Call]:
    """The calls without those whose results nobody needs."""
    wanted = {x.buffer for x in outputs}
    kept = []
    for call in reversed(calls):
        if call.primitive is REQUIRE or any(
            x.buffer in wanted or x.buffer.kind != "temporary" for x in call.outs
        ):
            kept.append(call)
            wanted.update(x.buffer for x in call.inputs)
    return kept[::-1]


class Builder:
    """Makes a `Built` of what a recorder heard."""

    def __init__(self, recorder: Recorder, outputs: Sequence[Ref], options: Options) -> None:
        self.options, self.outputs = options, outputs
        self.numbers = np.array(recorder.numbers, np.float64)
        self.compiled = options.fuse and launch.may_build()
        calls = needed_calls(recorder.calls, outputs)
        flags: list[Buffer] = []
        if self.compiled:
            calls, flags = part_by_part(in_rows(calls, recorder.temporary), recorder.temporary)
        calls, self.backups = with_backups(calls, recorder.temporary)
        nodes = fuse(calls, options.threads) if self.compiled else unfused(calls)
        self.read = {buffer for node in nodes for buffer in node.reads}
        self.flags = flags
        self.kept = {x.buffer for x in outputs} | {backup.copy.buffer for backup in self.backups}
        self.kept |= {call.inputs[0].buffer for call in calls if call.primitive is REQUIRE}
        if self.compiled:
            nodes = [in_place(node, self._is_read) for node in nodes]
            if not options.poison:
                nodes = chained(nodes)
        self.schedule = schedule(nodes, options.threads, self.compiled)
        if options.poison:  # after every node what is not needed any more is overwritten
            self.schedule = [Step([n], min(step.parts, 1)) for step in self.schedule for n in step.nodes]
        self.texts = {node: write_loop(node, self._is_read) for node in _each(self.schedule) if node.walks}
        self._place()

    def _is_read(self, buffer: Buffer) -> bool:
        return buffer in self.kept or buffer in self.read

    def _is_stored(self, buffer: Buffer) -> bool:
        return self._is_read(buffer) or buffer in self.python_outs or buffer in self.product_outs

    def _place(self) -> None:
        """Give all results and scratch memory their places."""
        nodes = list(_each(self.schedule))
        # A kernel writes all its outputs, read or not; a loop writes what is read.
        self.python_outs = {b for node in nodes if node.kind == "call" for b in node.writes}
        self.product_outs = {
            node.product.outs[0].buffer for node in nodes if node.kind == "product" and node.product
        }
        blocks = lives(self.schedule, self.kept, self._is_stored, self.options.plan)
        for now, group in moments(self.schedule):
            for node in group:
                for owner in (self.texts.get(node), node.plan):
                    for k, word in enumerate(owner.words if owner else ()):
                        if isinstance(word, Scratch):
                            blocks.append(Life((node, type(owner), k), word.nbytes, now, now))
        blocks = [
            block for block in blocks if block.key not in self.flags
        ]  # these are set at the beginning of a run
        self.offsets, size = place(blocks)
        for k, buffer in enumerate(self.flags):
            self.offsets[buffer] = size + k
        self.flag_bytes = size, size + len(self.flags)
        size += len(self.flags)
        self.arena = aligned_zeros((size,), np.uint8)
        self.base = address(self.arena)
        last = sum(1 for _ in moments(self.schedule))
        self.dead: list[list[tuple[int, int]]] = [[] for _ in range(last)]
        for block in blocks:
            if block.last < last:
                at = self.offsets[block.key]
                self.dead[block.last].append((at, at + block.nbytes))

    def view(self, ref: Ref) -> Array:
        """The array of a program that `ref` stands for."""
        if ref.array is not None:
            return ref.array
        at = self.offsets[ref.buffer] + ref.offset
        return np.ndarray(ref.shape, ref.dtype, self.arena.data, at, ref.strides)

    def _address(self, ref: Ref) -> int:
        if ref.buffer.array is None:
            return self.base + self.offsets[ref.buffer] + ref.offset
        return address(ref.buffer.array) + ref.offset

    def build(self) -> Built:
        """Compile the kernels and write the table."""
        self.table: list[int] = []
        self.fail_words: list[int] = []
        self.behind_words: list[tuple[int, int]] = []  # words with the address of another row: (word, row)
        rows: list[Row] = []
        row_words: list[int] = []
        phases: list[tuple[int, int, int]] = []
        steps: list[Any] = []
        rows_until: list[int] = []
        row_count = 0
        for number, step in enumerate(self.schedule):
            row_count += sum(1 for _ in _each([step]))
            if not step.parts:
                (node,) = step.nodes
                steps.append(self._python_call(node.product))  # type: ignore[arg-type]
                rows.append(Row(node, None, number, in_python=True))
                rows_until.append(row_count)
                continue
            begin = len(row_words)
            for node in step.nodes:
                row_words.append(self._chain_row(node) if node.links else self._row(node))
                rows += [Row(each, self.texts.get(each), number) for each in node.links or [node]]
            phases.append((begin, len(row_words), step.parts))
            if steps and not isinstance(steps[-1], PythonCall) and not self.options.poison:
                steps[-1], rows_until[-1] = (steps[-1][0], len(phases)), row_count
            else:
                steps.append((len(phases) - 1, len(phases)))
                rows_until.append(row_count)
        row_of = {call: k for k, row in enumerate(rows) for call in row.node.calls}
        table = np.array(self.table, np.int64)
        ready = None
        if phases:
            for word, start in self.behind_words:
                table[word] = address(table) + 8 * start
            ready = machine.Machine(table, row_words, phases)
            table[self.fail_words] = ready.fail_address
        return Built(
            steps,
            rows_until,
            rows,
            ready,
            table,
            self.arena,
            self.offsets,
            self.numbers,
            self.dead,
            self.arena[slice(*self.flag_bytes)],
            [(k, self.view(row.node.calls[0].inputs[0])) for k, row in enumerate(rows) if is_check(row.node)],
            [(row_of[b.writer], self.view(b.original), self.view(b.copy)) for b in self.backups],
            [self.view(ref) for ref in self.outputs],
        )

    def _python_call(self, call: Call) -> PythonCall:
        slots = {name: value.index for name, value in call.attributes.items() if isinstance(value, Slot)}
        checks = any(x.dtype.kind in "iu" and x.buffer.kind != "held" for x in call.inputs)
        outs, inputs = (tuple(self.view(ref) for ref in refs) for refs in (call.outs, call.inputs))
        return PythonCall(call, outs, inputs, slots, checks)

    def _chain_row(self, node: Node) -> int:
        """Append the rows of a chain's nodes, and the one that runs them."""
        links = [self._row(link) for link in node.links]
        samples = node.dims[0]
        start = self._head(
            kernel_of("chain", "chain").address, samples, 1, SPLIT_N if is_large(node) else WHOLE, 1
        )
        self.table += [-(-samples // node.slices), len(links)]
        for row in links:
            self.behind_words.append((len(self.table), row))
            self.table += [0, self.table[row + 1] // samples]
        return start

    def _row(self, node: Node) -> int:
        """Append the node's row, and before it that of the loop behind its product; gives where it begins."""
        if node.kind == "call":
            (flag,) = node.product.inputs  # type: ignore[union-attr]
            start = self._head(machine.check_kernel().address, 1, 1, 2, 1)
            self.table.append(self._address(flag))
            self.fail_words.append(len(self.table))
            self.table.append(0)
            return start
        behind = self._loop_row(node) if node.walks else -1
        if node.product is None:
            return behind
        if node.plan is not None:
            return self._planned_row(node, node.plan, behind)
        (c,) = node.product.outs
        a, b = node.product.inputs
        rsa, csa = a.strides[::-1] if node.product.attributes["ta"] else a.strides
        rsb, csb = b.strides[::-1] if node.product.attributes["tb"] else b.strides
        m, n = c.shape
        k = a.shape[0 if node.product.attributes["ta"] else 1]
        whole_columns = behind >= 0 and self.texts[node].split == 1
        split = 1 if whole_columns else product_split(node.product, self.options.threads)
        split = split if is_large(node) else 2
        compiled = matrix.kernel(c.dtype)
        start = self._head(compiled.address, m, n, split, matrix.quantum(c.dtype)[split % 2])
        self.table.append(self._address(a))
        self.table += [rsa, csa]
        self.table.append(self._address(b))
        self.table += [rsb, csb]
        self.table.append(self._address(c))
        self.table += [c.strides[0], k]
        if behind >= 0:
            self._behind(behind)
        else:
            self.table += [0, 0]
        return start

    def _behind(self, row: int) -> None:
        """Append the words that say what is called behind a product: its kernel and its row."""
        self.table.append(self.table[row])
        self.behind_words.append((len(self.table), row))
        self.table.append(0)

    def _planned_row(self, node: Node, plan: Plan, behind: int) -> int:
        """Append the row of a plan, whose scratch memory has its place already."""
        call: Call = node.product  # type: ignore[assignment]
        split = plan.split if is_large(node) else 2
        start = self._head(plan.kernel.address, plan.n, plan.m, split, plan.quantum)
        words = plan.words[:-2] if behind >= 0 else plan.words
        for k, word in enumerate(words):
            if isinstance(word, Operand):
                self.table.append(self._address(call.inputs[word.number]))
            elif isinstance(word, Result):
                self.table.append(self._address(call.outs[word.number]))
            elif isinstance(word, Scratch):
                self.table.append(self.base + self.offsets[node, Plan, k])
            elif isinstance(word, float):
                self.table.append(self._number(word))
            else:
                self.table.append(word if isinstance(word, int) else address(word))
        if behind >= 0:
            self._behind(behind)
        return start

    def _number(self, value: float) -> int:
        """The bits of a number, or the address of one that is worked out anew in every run."""
        return address(self.numbers) + 8 * value.index if isinstance(value, Slot) else as_word(value)

    def _head(self, kernel: int, n: int, m: int, split: int, quantum: int) -> int:
        start = len(self.table)
        self.table += [kernel, n, m, split, quantum]
        return start

    def _loop_row(self, node: Node) -> int:
        text = self.texts[node]
        n, m = node.dims if len(node.dims) == 2 else (node.dims[0], 1)
        compiled = kernel(text.name, text.source)
        quantum = 1 if len(node.dims) == 2 and text.split == 0 else 16
        start = self._head(compiled.address, n, m, text.split if is_large(node) else 2, quantum)
        for k, word in enumerate(text.words):
            if isinstance(word, Address):
                self.table.append(self._address(word.ref))
            elif isinstance(word, Scratch):
                self.table.append(self.base + self.offsets[node, Text, k])
            elif isinstance(word, float):
                self.table.append(self._number(word))
            else:
                self.table.append(word)
        return start
