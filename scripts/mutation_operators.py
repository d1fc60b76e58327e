"""Single-point mutants of a Python file, from its syntax tree.

A mutant replaces one node. Its identity is (file, function, text of the line, operator, index among equals), so that lines
added elsewhere do not rename it. Texts of errors, docstrings, annotations, imports and decorators are left alone.
"""

from __future__ import annotations

import ast
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


SWAPPED = {
    "min": "max", "amin": "amax", "minimum": "maximum", "argmin": "argmax", "fmin": "fmax", "all": "any", "floor": "ceil",
    "lower": "upper", "low": "high", "lo": "hi", "inner": "outer", "inf": "nan", "zeros": "ones", "zeros_like": "ones_like",
    "new_zeros": "new_ones", "logical_and": "logical_or", "clamp_min": "clamp_max", "cummax": "cummin", "sin": "cos",
    "cumsum": "cumprod", "isposinf": "isinf",
}  # fmt: skip
SWAPPED |= {b: a for a, b in SWAPPED.items()} | {"isinf": "isnan", "nan": "inf"}
INSTEAD = {"sum": ("mean", "amax"), "mean": ("sum", "amax"), "median": ("mean",)}
UNWRAPPED = _words(
    "abs sqrt square exp expm1 log log1p log2 tanh clamp clamp_min clamp_max relu grow floor ceil flip sort sorted cumsum "
    "tril triu reverse reversed nan_to_num logical_not transpose inverse cholesky conj diag_embed shrink nextafter"
)
COMPARED: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt), ast.LtE: (ast.Lt, ast.GtE), ast.Gt: (ast.GtE, ast.Lt), ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}  # fmt: skip
ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.MatMult, ast.Pow)
KEPT_ORDER = _words(
    "isinstance getattr setattr __setattr__ range zip where fail cast field issubclass hasattr listed min max minimum maximum "
    "equal _equal same_numbers _one_prior provably_equal"
)
KEPT_KEYWORDS = _words("strict frozen slots eq kw_only device dtype keepdim")
REDUCES = _words("sum mean amax amin any all norm vector_norm min max argmin argmax cumsum cummax prod logsumexp")
# Calls whose integers are axes or sizes: another one is a wrong shape, which any test sees.
SHAPED = REDUCES | _words(
    "unsqueeze squeeze stack cat expand reshape view new_zeros new_ones new_full zeros ones flatten unflatten transpose "
    "movedim size repeat cdist diagonal sort split linspace eye ndim permute atleast_1d atleast_2d"
)
SILENT = _words("fail debug info warning warn")  # calls whose arguments are words for a reader
TINY = 1e-5


@dataclass(frozen=True)
class Mutant:
    """One change. `function` is the qualified name of the outermost function around it, "" at the level of module or class."""

    id: str
    file: str
    function: str
    line: int
    first: int  # line on which the statement around it begins
    text: str
    operator: str
    before: str
    after: str
    index: int
    digest: str  # of the function's (or else the file's) source: a result holds for this text


@dataclass
class Source:
    """A file, its tree, and its mutants in the order of the file."""

    path: str
    text: str
    mutants: list[Mutant] = field(default_factory=list)
    _edits: dict[str, tuple[ast.AST, str, int | None, ast.AST]] = field(default_factory=dict)

    @staticmethod
    def read(root: Path, path: str) -> Source:
        """All mutants of root/path."""
        source = Source(path, (root / path).read_text())
        source.tree = ast.parse(source.text)
        lines, seen, counted = source.text.splitlines(), set(), Counter()
        whole = hashlib.sha256(source.text.encode()).hexdigest()[:16]
        functions = dict(outermost(source.tree))
        digests = {
            name: hashlib.sha256("\n".join(lines[node.lineno - 1 : node.end_lineno]).encode()).hexdigest()[:16]
            for name, node in functions.items()
        }
        for edit in _Walker(source.tree).edits():
            text = lines[edit.line - 1].strip()
            key = (id(edit.statement), edit.text)
            if edit.before == edit.after or key in seen:
                continue
            seen.add(key)
            place = (edit.function, text, edit.operator)
            index = counted[place]
            counted[place] += 1
            identity = f"{path}::{edit.function}::{text}::{edit.operator}#{index}"
            source.mutants.append(
                Mutant(
                    identity, path, edit.function, edit.line, min(edit.line, edit.statement.lineno), text, edit.operator,
                    edit.before, edit.after, index, digests.get(edit.function, whole),
                )
            )  # fmt: skip
            source._edits[identity] = (edit.parent, edit.field, edit.index, edit.node)
        return source

    tree: ast.Module = field(default_factory=lambda: ast.Module([], []))

    def compile(self, identity: str | None, filename: str) -> CodeType:
        """The module's code with one mutant applied (None: as it is). Raises SyntaxError or ValueError if there is none."""
        if identity is None:
            return compile(self.tree, filename, "exec", dont_inherit=True)
        parent, name, index, node = self._edits[identity]
        undo = _put(parent, name, index, node)
        try:
            return compile(self.tree, filename, "exec", dont_inherit=True)
        finally:
            _put(parent, name, index, undo)


def outermost(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """(qualified name, node) of every function that is not inside another one."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from outermost(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.stmt):
            yield from outermost(node, prefix)


def _put(parent: ast.AST, name: str, index: int | None, node: ast.AST) -> ast.AST:
    if index is None:
        old = getattr(parent, name)
        setattr(parent, name, node)
        return old
    values = getattr(parent, name)
    old, values[index] = values[index], node
    return old


@dataclass
class _Edit:
    parent: ast.AST
    field: str
    index: int | None
    node: ast.AST
    operator: str
    function: str
    line: int
    before: str
    after: str
    statement: ast.stmt
    text: str


@dataclass
class _Place:
    """Where a node hangs, and what is around it."""

    parent: ast.AST
    field: str
    index: int | None
    function: str
    statement: ast.stmt
    names: frozenset[str]  # names and attributes that occur in the file
    counting: bool = False  # an index, a slice, a range: numbers are shifted, not scaled
    axis: str = ""  # the call, if any, of which this is an axis or a size
    inside: bool = False  # inside a larger arithmetical expression
    bound: frozenset[str] = frozenset()  # arguments and names assigned earlier in the function


class _Walker:
    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        nodes = list(ast.walk(tree))
        self.names = frozenset(
            [n.id for n in nodes if isinstance(n, ast.Name)]
            + [n.attr for n in nodes if isinstance(n, ast.Attribute)]
            + [n.arg for n in nodes if isinstance(n, ast.arg)]
        )

    def edits(self) -> Iterator[_Edit]:
        for i, node in enumerate(self.tree.body):
            yield from self._visit(node, _Place(self.tree, "body", i, "", node, self.names), "", False)

    # ------------------------------------------------------------------ walking
    def _visit(self, node: ast.AST, at: _Place, prefix: str, nested: bool) -> Iterator[_Edit]:
        if at.axis and isinstance(node, ast.Constant) and isinstance(at.parent, ast.UnaryOp):
            return  # -1 is one axis
        if isinstance(
            node, (ast.Import, ast.ImportFrom, ast.Raise, ast.Assert, ast.JoinedStr, ast.Global, ast.Nonlocal)
        ):
            return
        if isinstance(node, ast.Call) and _called(node) in SILENT:
            return
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'"):
            return
        for operator, new in self._replacements(node, at):
            yield self._edit(node, at, operator, new)
        here, inner, scope = at.function, prefix, nested
        if isinstance(node, ast.ClassDef):
            inner = prefix if nested else f"{prefix}{node.name}."
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if node.name in ("__repr__", "__str__"):
                return
            here, scope = (at.function if nested else prefix + node.name), True
        for name, value in ast.iter_fields(node):
            if (
                name in ("annotation", "returns", "decorator_list", "type_params", "bases", "keywords_")
                or value is None
            ):
                continue
            bound = set(at.bound) if not isinstance(node, (ast.FunctionDef, ast.Lambda)) else _arguments(node.args)
            children = value if isinstance(value, list) else [value]
            for i, child in enumerate(children):
                if not isinstance(child, ast.AST):
                    continue
                if isinstance(child, ast.keyword) and (child.arg in KEPT_KEYWORDS or isinstance(node, ast.ClassDef)):
                    continue
                statement = child if isinstance(child, ast.stmt) else at.statement
                counting = (
                    at.counting
                    or (isinstance(node, ast.Subscript) and name == "slice")
                    or (isinstance(node, ast.Call) and name == "args" and _called(node) == "range")
                )
                arithmetic = isinstance(node, ast.BinOp) and isinstance(node.op, ARITHMETIC)
                inside = arithmetic or (at.inside and isinstance(node, (ast.UnaryOp, ast.BinOp)))
                axis = (
                    _axis(node, name, child) if not isinstance(node, (ast.UnaryOp, ast.Tuple, ast.keyword)) else at.axis
                )
                place = _Place(
                    node, name, i if isinstance(value, list) else None, here, statement, self.names, counting, axis, inside,
                    frozenset(bound),
                )  # fmt: skip
                # Default values belong to the level around the function: they are evaluated when it is defined.
                if isinstance(child, ast.arguments) and not nested and not isinstance(node, ast.Lambda):
                    place.function = ""
                yield from self._visit(child, place, inner, scope)
                if isinstance(child, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
                    bound |= {n.id for n in ast.walk(child) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}

    def _edit(self, node: ast.AST, at: _Place, operator: str, new: ast.AST) -> _Edit:
        ast.copy_location(new, node)
        ast.fix_missing_locations(new)
        before, after = _text(node), _text(new)
        spot: ast.expr | ast.stmt = node.target if isinstance(node, ast.comprehension) else node  # type: ignore[assignment]
        simple = not isinstance(
            at.statement, (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.FunctionDef, ast.ClassDef)
        )
        if simple and node is not at.statement:
            undo = _put(at.parent, at.field, at.index, new)
            text = ast.unparse(at.statement)
            _put(at.parent, at.field, at.index, undo)
        else:
            text = f"{operator}:{before}->{after}@{spot.lineno}:{spot.col_offset}"
        return _Edit(
            at.parent, at.field, at.index, new, operator, at.function, spot.lineno, before, after, at.statement, text
        )

    # ---------------------------------------------------------------- operators
    def _replacements(self, node: ast.AST, at: _Place) -> Iterator[tuple[str, ast.AST]]:
        match node:
            case ast.stmt():
                yield from _statement(node, at)
            case ast.BinOp():
                yield from _binary(node, at)
            case ast.UnaryOp():
                yield from _unary(node, at)
            case ast.Constant():
                yield from _constant(node.value, at)
            case ast.Compare():
                for i, op in enumerate(node.ops):
                    for other in COMPARED.get(type(op), ()):
                        ops = [*node.ops[:i], other(), *node.ops[i + 1 :]]
                        yield "compare", ast.Compare(node.left, ops, node.comparators)
            case ast.BoolOp():
                for i in range(len(node.values)):
                    rest = [v for j, v in enumerate(node.values) if j != i]
                    yield "drop-condition", rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
                yield "and-or", ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
            case ast.IfExp():
                yield "branch", node.body
                yield "branch", node.orelse
            case ast.Call():
                yield from _call(node)
            case ast.Attribute(attr=attr) if isinstance(node.ctx, ast.Load):
                if attr in ("mT", "T"):
                    yield "transpose", node.value
                elif attr in SWAPPED and (SWAPPED[attr] in self.names or _is_called(at)):
                    yield "opposite", ast.Attribute(node.value, SWAPPED[attr], node.ctx)
                for other in INSTEAD.get(attr, ()) if _is_called(at) else ():
                    yield "reduction", ast.Attribute(node.value, other, node.ctx)
            case ast.Name(id=name) if isinstance(node.ctx, ast.Load):
                if name in SWAPPED and (SWAPPED[name] in self.names or name in ("min", "max", "all", "any")):
                    yield "opposite", ast.Name(SWAPPED[name], node.ctx)
                if isinstance(at.parent, (ast.Subscript, ast.Tuple, ast.Slice)) and at.counting:
                    for op in (ast.Add(), ast.Sub()):
                        yield "shift", ast.BinOp(node, op, ast.Constant(1))
            case ast.comprehension() if node.ifs:
                for i in range(len(node.ifs)):
                    ifs = [c for j, c in enumerate(node.ifs) if j != i]
                    yield "drop-condition", ast.comprehension(node.target, node.iter, ifs, node.is_async)
            case _:
                return


def _statement(node: ast.stmt, at: _Place) -> Iterator[tuple[str, ast.AST]]:
    match node:
        case ast.Expr(value=ast.Call()) | ast.AugAssign():
            yield "drop-statement", ast.Pass()
        case ast.Assign(targets=[target]):
            dropped = isinstance(target, (ast.Subscript, ast.Attribute)) or {
                n.id for n in ast.walk(target) if isinstance(n, ast.Name)
            } <= set(at.bound)
            if dropped and at.function:
                yield "drop-statement", ast.Pass()
        case ast.Break() | ast.Continue():
            yield "drop-statement", ast.Pass()
        case ast.If():
            yield "branch", ast.If(ast.Constant(False), node.body, node.orelse)
            yield "branch", ast.If(ast.Constant(True), node.body, node.orelse)
        case ast.Return(value=ast.Tuple(elts=[a, b])):
            yield "swap", ast.Return(ast.Tuple([b, a], ast.Load()))
    if isinstance(node, ast.AugAssign):
        for op in _signs(node.op):
            yield "sign", ast.AugAssign(node.target, op, node.value)


def _signs(op: ast.operator) -> Iterator[ast.operator]:
    others = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd}
    if type(op) in others:
        yield others[type(op)]()


def _binary(node: ast.BinOp, at: _Place) -> Iterator[tuple[str, ast.AST]]:
    left, op, right = node.left, node.op, node.right
    for other in _signs(op):
        yield "sign" if isinstance(op, (ast.Add, ast.Sub)) else "and-or", ast.BinOp(left, other, right)
    match op:
        case ast.Add():
            yield "drop-term", left
            yield "drop-term", right
        case ast.Sub():
            yield "drop-term", left
            yield "drop-term", ast.UnaryOp(ast.USub(), right)
        case ast.BitAnd() | ast.BitOr():
            yield "drop-condition", left
            yield "drop-condition", right
        case ast.Mult() | ast.MatMult():
            yield "drop-factor", left
            yield "drop-factor", right
        case ast.Div():
            yield "drop-factor", left
            if not (isinstance(left, ast.Constant) and left.value == 1):
                yield "drop-factor", ast.BinOp(ast.Constant(1.0), op, right)
            yield "drop-factor", ast.BinOp(left, ast.Mult(), right)
        case ast.FloorDiv() | ast.Mod():
            yield "drop-factor", left
        case ast.Pow():
            yield "power", left
    if isinstance(op, ARITHMETIC) and not at.counting:
        if not at.inside:
            yield from _scaled(node, lambda new: new)
        if isinstance(op, (ast.Add, ast.Sub)):
            if not isinstance(left, ast.Constant) and not _is_sum(left):
                yield from _scaled(left, lambda new: ast.BinOp(new, op, right))
            if not isinstance(right, ast.Constant):
                yield from _scaled(right, lambda new: ast.BinOp(left, op, new))


def _is_sum(node: ast.AST) -> bool:
    return isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub))


def _scaled(node: ast.expr, wrap) -> Iterator[tuple[str, ast.AST]]:
    for factor in (0.5, 2.0):
        yield "factor", wrap(ast.BinOp(ast.Constant(factor), ast.Mult(), node))


def _axis(node: ast.AST, name: str, child: ast.AST) -> str:
    axes = name == "args" or (isinstance(child, ast.keyword) and child.arg in ("dim", "dims", "axis"))
    return _called(node) if axes and isinstance(node, ast.Call) and _called(node) in SHAPED else ""


def _unary(node: ast.UnaryOp, at: _Place) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node.op, (ast.Not, ast.Invert)):
        yield "negation", node.operand
    elif isinstance(node.op, ast.USub):
        whole = isinstance(node.operand, ast.Constant) and isinstance(node.operand.value, int)
        if at.axis and whole:
            if at.axis in REDUCES:
                yield "axis", ast.UnaryOp(ast.USub(), ast.Constant(2 if node.operand.value == 1 else 1))  # type: ignore[union-attr]
            return
        yield "sign", node.operand
        if whole:
            yield "shift", ast.Constant(0) if node.operand.value == 1 else ast.UnaryOp(ast.USub(), ast.Constant(1))  # type: ignore[union-attr]


def _constant(value: object, at: _Place) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(value, bool):
        yield "boolean", ast.Constant(not value)
    elif isinstance(value, int) and at.axis:
        if at.axis in REDUCES and not isinstance(at.parent, ast.UnaryOp):
            yield "axis", ast.Constant(1 - value if value in (0, 1) else 0)
    elif isinstance(value, int):
        yield "shift", ast.Constant(value + 1)
        if not isinstance(at.parent, ast.UnaryOp) and not (value == 0 and at.counting):
            yield "shift", ast.Constant(value - 1)
    elif isinstance(value, float):
        if value == 0.0:
            yield "constant", ast.Constant(1.0)
        elif abs(value) < TINY:
            yield "tolerance", ast.Constant(0.0)
            yield "tolerance", ast.Constant(1e3 * value)
        else:
            yield "constant", ast.Constant(2 * value)
            yield "constant", ast.Constant(0.5 * value)


def _call(node: ast.Call) -> Iterator[tuple[str, ast.AST]]:
    name, args = _called(node), node.args
    method = isinstance(node.func, ast.Attribute) and not (
        isinstance(node.func.value, ast.Name) and node.func.value.id in ("torch", "math", "np", "F", "linalg")
    )
    if name in UNWRAPPED:
        if method:
            yield "unwrap", node.func.value  # type: ignore[union-attr]
        elif args:
            yield "unwrap", args[0]
    if name in ("min", "max", "minimum", "maximum") and len(args) == 2:
        yield "unwrap", args[0]
        yield "unwrap", args[1]
    if name == "where" and len(args) == 3:
        yield "branch", args[1]
        yield "branch", args[2]
        yield "swap", ast.Call(node.func, [args[0], args[2], args[1]], node.keywords)
    if name in ("norm", "vector_norm") and not {"p", "ord"} & {k.arg for k in node.keywords}:
        key = "p" if method else "ord"
        for order in (ast.Constant(1), ast.Constant(float("inf"))):
            shown = order if order.value == 1 else ast.Call(ast.Name("float", ast.Load()), [ast.Constant("inf")], [])
            yield "norm", ast.Call(node.func, args, [*node.keywords, ast.keyword(key, shown)])
    if name == "range" and args:
        i = 0 if len(args) == 1 else 1
        for op in (ast.Add(), ast.Sub()):
            yield (
                "shift",
                ast.Call(
                    node.func, [*args[:i], ast.BinOp(args[i], op, ast.Constant(1)), *args[i + 1 :]], node.keywords
                ),
            )
    requires = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "_require"
    if name not in KEPT_ORDER and not requires and not any(isinstance(a, ast.Starred) for a in args):
        for i in range(len(args) - 1):
            if not (isinstance(args[i], ast.Constant) and isinstance(args[i + 1], ast.Constant)):
                yield "swap", ast.Call(node.func, [*args[:i], args[i + 1], args[i], *args[i + 2 :]], node.keywords)


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _is_called(at: _Place) -> bool:
    return isinstance(at.parent, ast.Call) and at.field == "func"


def _arguments(args: ast.arguments) -> set[str]:
    return {a.arg for a in [*args.posonlyargs, *args.args, *args.kwonlyargs]}


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.If):
        return f"if {ast.unparse(node.test)}:"
    if isinstance(node, ast.comprehension):
        return " ".join(f"if {ast.unparse(condition)}" for condition in node.ifs) or "(no condition)"
    return ast.unparse(node)
