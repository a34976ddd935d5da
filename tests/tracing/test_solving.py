"""Dimensions as functions of lengths: solved exactly, or not at all."""

from fractions import Fraction

from bridge.tracing.solving import Point, Polynomial, Scale, Solver, constant

POINTS = [Point(2, 9), Point(3, 9), Point(2, 14), Point(3, 300)]
NONE, TOKENS, PIECES = (0, 0, 0, 0), (1, 0, 0, 0), (0, 0, 1, 0)
LINEAR = dict.fromkeys((Scale.SEQUENCES, Scale.ONCE), (NONE, TOKENS))
CHUNKS = dict.fromkeys(LINEAR, (NONE, TOKENS, PIECES))


def fit(values, points, bases, chunk=1):
    return Solver(points, bases, chunk).fit(values)


def test_a_dimension_is_solved_with_its_number_of_sequences():
    found = fit([20 * point.batch * (point.length + 7) for point in POINTS], POINTS, LINEAR)
    assert found is not None
    assert found.coefficients == {NONE: 140, TOKENS: 20}
    assert found.at(Point(5, 777)) == 5 * 20 * 784


def test_what_all_sequences_share_is_not_multiplied():
    found = fit([point.length + 1 for point in POINTS], POINTS, LINEAR)
    assert found is not None
    assert (found.scale, found.at(Point(5, 777))) == (Scale.ONCE, 778)


def test_a_square_is_no_linear_dimension():
    assert fit([point.length**2 for point in POINTS], POINTS, LINEAR) is None


def test_a_value_that_is_wrong_at_one_point_is_no_solution():
    assert fit([18, 27, 28, 901], POINTS, LINEAR) is None


def test_chunks_are_told_from_tokens_past_the_first_one_only():
    points = [*POINTS, Point(2, 64), Point(2, 71), Point(2, 133)]
    values = [point.batch * -(-point.length // 64) for point in points]
    found = fit(values, points, CHUNKS, 64)
    assert found is not None
    assert found.coefficients == {PIECES: 1}
    assert found.at(Point(1, 129)) == 3
    assert fit(values, points, CHUNKS, 128) is None
    short = [Point(2, 9), Point(3, 9), Point(2, 14), Point(2, 23)]
    assert fit([5 * point.length for point in short], short, CHUNKS, 64) is None, "one chunk does not decide"


def test_products_of_dimensions():
    heads = Polynomial({NONE: Fraction(4)}, Scale.SEQUENCES)
    longer = Polynomial({NONE: Fraction(20), TOKENS: Fraction(1)})
    work = heads * longer * longer * constant(16)
    assert work.coefficients == {NONE: 64 * 400, TOKENS: 64 * 40, (2, 0, 0, 0): 64}
    assert work.at(Point(3, 5)) == 3 * 64 * 25**2
    assert (constant(16).constant, heads.constant, heads.factor) == (16, 0, 4)


def test_chunks_that_must_be_full_are_told_from_those_that_are_filled_up():
    points = [*POINTS, Point(2, 64), Point(2, 71), Point(2, 133)]
    values = [point.batch * (point.length // 64) for point in points]
    found = fit(values, points, CHUNKS, -64)
    assert found is not None
    assert (found.coefficients, found.at(Point(1, 127))) == ({PIECES: 1}, 1)
    assert fit(values, points, CHUNKS, 64) is None


def test_images_are_told_from_sequences():
    bases = {**LINEAR, Scale.IMAGES: (NONE, (0, 0, 0, 1))}
    points = [Point(2, 9, images=1, patches=16), Point(3, 9, images=1, patches=32), Point(2, 14, images=2, patches=64)]
    points += [Point(2, 9, images=2, patches=32), Point(3, 300, images=2, patches=64)]
    found = fit([point.batch * point.images * (point.patches // 4 + 1) for point in points], points, bases)
    assert found is not None
    assert (found.scale, found.coefficients) == (Scale.IMAGES, {NONE: 1, (0, 0, 0, 1): Fraction(1, 4)})
    assert found.at(Point(5, 7, images=3, patches=100)) == 15 * 26
    assert (found * constant(3)).scale is Scale.IMAGES
    assert (found * Polynomial({TOKENS: Fraction(1)}, Scale.SEQUENCES)).scale is Scale.NEITHER


# Mutants that nothing tells apart: the sizes of the points in ``Tracer._points``, since other ones solve the same polynomials.
