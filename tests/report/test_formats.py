import pytest

from audit.records import Estimate
from audit.report import formats
from audit.report.figures import Bar, rates_picture

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (formats.rate(Estimate(value=0.3124, low=0.271, high=0.356)), "31.2% [27.1, 35.6]"),
        (formats.rate(Estimate(value=None)), "n/a"),
        (formats.rate(Estimate(value=0.5)), "50.0%"),
        (formats.difference(Estimate(value=0.0312, low=-0.012, high=0.049)), "+3.1 [−1.2, +4.9]"),
        (formats.points(-0.00001), "0.0"),
        (formats.points(None), "n/a"),
        (formats.p_value(0.00021), "< 0.001"),
        (formats.p_value(0.0012), "0.001"),
        (formats.p_value(1.0), "1.000"),
        (formats.quantity(0.0), "0"),
        (formats.quantity(3.1e-7), "3.1 × 10⁻⁷"),
        (formats.quantity(0.05), "0.05"),
        (formats.quantity(1200.0), "1,200"),
        (formats.quantity(-1.4239), "−1.42"),
        (formats.quantity(float("inf")), "∞"),
        (formats.quantity(float("nan")), "n/a"),
        (formats.plural(1, "finding"), "1 finding"),
        (formats.plural(1200, "image"), "1,200 images"),
    ],
)
def test_numbers_are_written_one_way(written: str, expected: str) -> None:
    assert written == expected


def test_direction_marks_and_control_characters_become_visible() -> None:
    assert formats.clean("a\u202eb\x00c\ud800") == "a\\u202eb\\u0000c\\ud800"


def test_long_and_empty_labels() -> None:
    assert formats.label("y" * 10_000) == "y" * 60 + "… (10,000 characters)"
    assert formats.label(" ") == "(blank)"
    assert formats.cut("twenty (20)", 11) == "twenty (20)"
    assert formats.cut("twenty (20)", 9) == "twenty (2…"


def test_long_names_of_groups_are_drawn_beyond_a_bracket() -> None:
    def drawn(name: str) -> str:
        picture = rates_picture((Bar(name, Estimate(value=0.5), False),), "Rates")
        assert picture is not None
        return picture.light

    assert drawn("young (20 to 29 years old)") != drawn("young (30 to 39 years old)")


def test_slugs_differ_where_texts_differ() -> None:
    assert formats.slug("a:b") != formats.slug("a-b")
    assert formats.slug("<script>").replace("-", "").isalnum()


def test_level_note_names_every_level() -> None:
    estimates = [Estimate(value=0.0, low=0, high=0, level=0.95), Estimate(value=0.0, low=0, high=0, level=0.99)]
    assert "95% or 99%" in formats.level_note(estimates)
