"""Dimensions as functions of lengths: solved exactly, or not at all."""

from fractions import Fraction

from bridge.tracing.solving import Point, Polynomial, constant, fit

POINTS = [Point(2, 9), Point(3, 9), Point(2, 14), Point(3, 300)]
LINEAR = ((0, 0, 0), (1, 0, 0))
CHUNKS = (*LINEAR, (0, 0, 1))


def test_a_dimension_is_solved_with_its_number_of_sequences():
    found = fit([20 * point.batch * (point.length + 7) for point in POINTS], POINTS, LINEAR)
    assert found is not None
    assert found.coefficients == {(0, 0, 0): 140, (1, 0, 0): 20}
    assert found.at(Point(5, 777)) == 5 * 20 * 784


def test_what_all_sequences_share_is_not_multiplied():
    found = fit([point.length + 1 for point in POINTS], POINTS, LINEAR)
    assert found is not None
    assert (found.batch, found.at(Point(5, 777))) == (0, 778)


def test_a_square_is_no_linear_dimension():
    assert fit([point.length**2 for point in POINTS], POINTS, LINEAR) is None


def test_a_value_that_is_wrong_at_one_point_is_no_solution():
    assert fit([18, 27, 28, 901], POINTS, LINEAR) is None


def test_chunks_are_told_from_tokens_past_the_first_one_only():
    points = [*POINTS, Point(2, 64), Point(2, 71), Point(2, 133)]
    values = [point.batch * -(-point.length // 64) for point in points]
    found = fit(values, points, CHUNKS, 64)
    assert found is not None
    assert found.coefficients == {(0, 0, 1): 1}
    assert found.at(Point(1, 129)) == 3
    assert fit(values, points, CHUNKS, 128) is None
    short = [Point(2, 9), Point(3, 9), Point(2, 14), Point(2, 23)]
    assert fit([5 * point.length for point in short], short, CHUNKS, 64) is None, "one chunk does not decide"


def test_products_of_dimensions():
    heads = Polynomial({(0, 0, 0): Fraction(4)}, batch=1)
    longer = Polynomial({(0, 0, 0): Fraction(20), (1, 0, 0): Fraction(1)})
    work = heads * longer * longer * constant(16)
    assert work.coefficients == {(0, 0, 0): 64 * 400, (1, 0, 0): 64 * 40, (2, 0, 0): 64}
    assert work.at(Point(3, 5)) == 3 * 64 * 25**2
    assert (constant(16).constant, heads.constant, heads.factor) == (16, 0, 4)
