r"""Worked answers of mathematics: the last \boxed{}, and results equal by value."""

import threading

import pytest

from eval.graders.math_answers import final_answer, grade, is_equal, is_right

# Of one value, set, interval, formula or word, in the spellings of MATH and of models.
EQUAL = [
    (r"\frac{1}{2}", "0.5"),
    (r"\frac{1}{2}", r"\dfrac12"),
    (r"\tfrac{1}{2}", "1/2"),
    ("3/2", "1 1/2"),
    (r"12\text{ cm}", "12"),
    (r"864 \mbox{ inches}^2", "864"),
    (r"90^\circ", "90"),
    (r"\$12.50", "12.5"),
    (r"10,\!000", "10000"),
    ("1,234", "1234"),
    (r"3\sqrt{2}", r"\sqrt{18}"),
    ("x^2+2x+1", "(x+1)^2"),
    ("x=5", "5"),
    ("2x+3", "y = 2x+3"),
    (r"\{1,2\}", r"\{2,1\}"),
    ("3, 5, 7", "7,5,3"),
    (r"1 \pm \sqrt{19}", r"1+\sqrt{19},1-\sqrt{19}"),
    ("[2,5)", r"\left[ 2, 5\right)"),
    (r"x \in [-2,7]", "[-2,7]"),
    (r"(-\infty, 3) \cup (5, \infty)", r"(5,\infty)\cup(-\infty,3)"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    (r"\text{Evelyn}", "Evelyn"),
    (r"\text{(A)}", "A"),
    (r"\text{6:30 p.m.}", "6:30 p.m."),
    (r"50\%", "50"),
    (r"50\%", "50%"),
    ("1/2", r"50\%"),
    ("75％", "0.75"),
    ("18元", "18"),
    (r"$5$;$\frac{1}{2}$", "5；0.5"),
]
APART = [
    ("2", "3"),
    ("[2,5)", "(2,5)"),
    ("[2,5)", "[2,5]"),
    ("(1,2)", "(2,1)"),
    (r"\{1,2\}", r"\{1,2,3\}"),
    (r"\pi", "3.14159"),
    ("0.333", "1/3"),
    ("11_2", "3"),
    (r"50\%", r"0.5\%"),
    (r"\text{(A)}", "B"),
    (r"\text{east}", r"\text{west}"),
    ("$5$;$10$", "10;5"),
    ("7", ""),
    ("7", "9^{9^{9^{9}}}"),
]


@pytest.mark.parametrize(("target", "answer"), EQUAL)
def test_results_of_one_value_are_equal_in_every_spelling(target, answer):
    assert is_equal(answer, target) and is_equal(target, answer)
    assert is_right(f"Since $2 = 2$, we get $\\boxed{{{answer}}}$.", target)


@pytest.mark.parametrize(("target", "answer"), APART)
def test_other_results_are_not(target, answer):
    assert not is_equal(answer, target) and not is_equal(target, answer)


@pytest.mark.parametrize(
    ("answer", "target"),
    [
        (r"The answer is \boxed{7}.", "7"),
        (r"First \boxed{2}, then, correcting that, \boxed{3}. Is 4 even? Yes.", "3"),
        (r"We have \boxed{\frac{1}{\sqrt{2}}}", r"\frac{\sqrt{2}}{2}"),
        ("\\boxed 7$", "7"),
        # Cut at the cap inside a second box.
        (r"So \boxed{2}. To check: \boxed{3", "2"),
        (
            "We get $x=3$.\n\nThe final answer is $\\frac{1}{2}$. I hope it is correct.",
            r"\frac{1}{2}",
        ),
        ("3 + 4 = 7, so:\n\n**Final Answer:**\n\n12 cm", "12"),
        ("#### 1,042", "1042"),
        ("The answer is 1,234 dollars.", "1234"),
        ("It costs $12.50 for 3 of them, so x is -5", "-5"),
        ("Let $a=1$; then the sum is $\\frac{3}{4}$.\nSo it goes on.", "3/4"),
        ("0.5", r"\frac{1}{2}"),
        ("2 + 3 = 5", "5"),
        ("先算 2+3=5。所以一共有 17 个。", "17"),
        ("3×6=18（包）\n答：一共买了18小包茶叶。", "18"),
        ("答案是3/4。", "0.75"),
        ("所以剩下的是4分之3", "3/4"),
        ("及格的占百分之75。", "3/4"),
        ("答案：75%", r"\frac{3}{4}"),
        ("由题意知答案是平行四边形。", "平行四边形"),
        ("由题意知答案是1，8/9。", r"1;$\frac{8}{9}$"),
    ],
)
def test_a_worked_answer_ends_in_its_result(answer, target):
    assert is_right(answer, target)
    assert final_answer(answer)
    assert not is_right(answer, "123456")


@pytest.mark.parametrize(
    ("answer", "target"),
    [
        (r"First \boxed{2}, then \boxed{3}.", "2"),
        ("先算 2+3=5。所以一共有 17 个。", "5"),
        ("The answer is 3 or 4.", "3"),
        ("The answer is 7.", "3 + 4 + 1"),
        ("I do not know.", "7"),
        ("", "7"),
    ],
)
def test_what_stands_on_the_way_is_no_result(answer, target):
    assert not is_right(answer, target)


def test_a_target_may_be_a_worked_solution_or_a_list_of_results():
    solution = "Half of $10$ is $5$, so the answer is $\\boxed{\\text{five}}$."
    assert grade("It is \\boxed{five}", solution) == 1
    assert grade("It is \\boxed{5}", solution) == 0
    assert grade("0.5", ["7", "1/2"]) == 1


def test_it_works_outside_the_main_thread():
    """Where math-verify's limits of time, which are alarms, cannot be set."""
    found = []
    thread = threading.Thread(target=lambda: found.append(is_equal("(x+1)^2", "x^2+2x+1")))
    thread.start()
    thread.join()
    assert found == [True]
