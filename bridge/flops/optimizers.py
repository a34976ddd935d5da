"""What optimizers multiply: the matrix products of one step, beside the model's.

Adam and its relatives work number by number.  Muon (Jordan et al. 2024), Shampoo (Gupta et al., arXiv:1802.09568) and SOAP
(Vyas et al., arXiv:2409.11321) multiply every weight matrix by matrices as large as its sides.  Counted are products; roots,
QR and eigendecompositions, which run on no matrix unit, are not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bridge.flops.plan import FLOPS_PER_MAC, Plan
from bridge.flops.shapes import ConfigError, short
from bridge.flops.terms import Kind, Role, Term

#: Rows and columns of a weight, as torch has it.
Matrix = tuple[int, int]


@dataclass(frozen=True)
class MatrixOptimizer:
    """How an optimizer works on a matrix.

    Attributes:
        name: one of ``RULES``.
        steps: Newton-Schulz iterations (Muon).
        power_steps: rounds of power iteration before QR (SOAP); 0 where eigenbases come from an eigendecomposition.
        kl: the preconditioners are those of KL-Shampoo (SOAP; Lin et al., arXiv:2509.03378).
    """

    name: str
    steps: int = 5
    power_steps: int = 1
    kl: bool = False

    def flops(self, matrices: Iterable[Matrix]) -> int:
        """FLOPs of one step on these weights; the first step of SOAP has an eigendecomposition instead of power iteration."""
        counted = Counter(matrices)
        return FLOPS_PER_MAC * sum(times * RULES[self.name](self, *matrix) for matrix, times in counted.items())


def newton_schulz(side: int, other: int) -> int:
    """Multiply-accumulates of an iteration: X X^T, its square, and their sum times X, for ``side`` rows of ``other`` numbers."""
    return 2 * side**2 * other + side**3


def _muon(how: MatrixOptimizer, rows: int, columns: int) -> int:
    return how.steps * newton_schulz(*sorted((rows, columns)))


def _shampoo(how: MatrixOptimizer, rows: int, columns: int) -> int:
    """G G^T and G^T G; the gradient between the two roots."""
    return 2 * _both_sides(rows, columns)


def _soap(how: MatrixOptimizer, rows: int, columns: int) -> int:
    """The preconditioners; moments out of the old eigenbasis and into the new one; the gradient into it, the update out of it."""
    sides, cubes = _both_sides(rows, columns), rows**3 + columns**3
    preconditioners = 2 * (sides + cubes) if how.kl else sides
    # Eigenvalues are looked at in the old basis, to sort it.
    return preconditioners + 4 * sides + cubes * (1 + how.power_steps)


def _both_sides(rows: int, columns: int) -> int:
    """A matrix times one as large as its rows, and one as large as its columns."""
    return rows * columns * (rows + columns)


RULES: dict[str, Callable[[MatrixOptimizer, int, int], int]] = {"muon": _muon, "shampoo": _shampoo, "soap": _soap}
#: megatron-core's names of those that multiply as another does.
_ALIASES = {"adaptive_muon": "muon", "muon_hyperball": "muon", "dist_muon": "muon", "rekls": "soap"}


def of_config(get: Callable[[str], Any]) -> MatrixOptimizer | None:
    """The optimizer that a configuration asks for; None where it multiplies no matrices.

    Args:
        get: the value of a field of megatron-core's ``OptimizerConfig``, or of Megatron-LM's arguments; None without it.

    Raises:
        ConfigError: it multiplies matrices, and how many is not known.
    """
    name = str(get("optimizer") or "adam")
    rule = _ALIASES.get(name, name)
    if rule not in RULES:
        if multiplies(name):
            raise ConfigError(
                f"optimizer={short(name)}: the matrices that it multiplies are unknown; known are {', '.join(RULES)}"
            )
        return None
    steps, kl = get("muon_num_ns_steps"), get("soap_use_kl_shampoo")
    by_eigenvectors = name == "rekls" or get("soap_use_eigh") is True
    return MatrixOptimizer(
        rule,
        steps=5 if steps is None else int(steps),
        power_steps=0 if by_eigenvectors else int(get("soap_power_iter_steps") or 1),
        kl=name == "rekls" or bool(kl),
    )


_MULTIPLY = ("muon", "soap", "shampoo", "rekls", "psgd", "scion", "polargrad", "orthogonal")
#: Names that are part of others' (Adam-Op-timizer).
_SHORT = ("mop", "spel", "kron")


def multiplies(name: str) -> bool:
    """Whether an optimizer of this name multiplies matrices, known to us or not."""
    name = name.lower()
    return name in _SHORT or any(part in name for part in _MULTIPLY)


def matrices(plan: Plan, *, split_qkv: bool = True) -> list[Matrix]:
    """The weights that megatron-core gives such an optimizer: all with two dimensions except embeddings and the output layer.

    Args:
        plan: of the model.
        split_qkv: queries, keys and values are taken apart where one layer makes them (``muon_split_qkv``).
    """
    found: list[Matrix] = []
    for term in plan.built_terms(padded=True):
        if not term.weight or term.tied or not plan.trains(term) or not _is_matrix(term):
            continue
        apart = split_qkv and term.name == "linear_qkv"
        found += [(rows, term.k) for rows in (dict(term.parts).values() if apart else (term.n,))] * term.copies
    return found


def _is_matrix(term: Term) -> bool:
    if term.kind is Kind.TABLE:
        return term.n > 1 and not term.path.startswith("embedding.word")  # positions are not excepted
    return term.kind in (Kind.LINEAR, Kind.ROUTER, Kind.GATE) and Role.OUTPUT not in term.roles


def optimizer_flops(plan: Plan, options: Mapping[str, Any]) -> int:
    """FLOPs of one step of a model's optimizer, each matrix taken once, whole.

    Args:
        plan: of the model.
        options: megatron-core's: ``optimizer``, ``muon_num_ns_steps``, ``muon_split_qkv``, ``soap_use_kl_shampoo``, ...

    Raises:
        ConfigError: it is not known which matrices it multiplies.
    """
    chosen = of_config(options.get)
    if chosen is None:
        return 0
    split = chosen.name == "muon" and options.get("muon_split_qkv") is not False
    return chosen.flops(matrices(plan, split_qkv=split))
