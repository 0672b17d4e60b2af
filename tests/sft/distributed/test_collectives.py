"""Work shared by processes: order, empty shares, and errors that reach all of them."""

from launching import in_two_processes

SCRIPT = """
import sys
from accelerate import PartialState
from sft.errors import UserError
from sft.distributed.collectives import main_first, map_over_ranks, own_share, run_on_main
from sft.distributed.collectives import temporary_folder
state = PartialState(cpu=True)
rank = state.process_index

def square(own):
    assert own, "no call for an empty share"
    return [(n * n, rank) for n in own]

def refuse(own):
    raise UserError(f"no {own}")

def full():
    raise OSError(28, "No space left on device", "x.json")

assert map_over_ranks(range(5), square) == [(0, 0), (1, 1), (4, 0), (9, 1), (16, 0)]
assert map_over_ranks([7], square) == [(49, 0)]
assert map_over_ranks([], square) == []
for work, kind, words in (
    (lambda: map_over_ranks([0, 1], refuse), UserError, "no [0]"),
    (lambda: map_over_ranks([0, 1], lambda own: refuse(own) if rank else own), UserError, "no [1]"),
    (lambda: run_on_main(lambda: refuse(rank)), UserError, "no 0"),
    (lambda: run_on_main(full), OSError, "x.json"),
):
    try:
        work()
    except kind as error:
        assert words in str(error), error
    else:
        raise AssertionError(words)
assert run_on_main(lambda: rank) == 0
assert run_on_main(lambda: map_over_ranks([3, 4], square)) == [(9, 0), (16, 0)]
assert run_on_main(lambda: [*own_share("ab"), run_on_main(lambda: rank)]) == ["a", "b", 0]
assert own_share("ab") == ["ab"[rank]]

def waiting():
    "What waits for the others, and must not where one process is alone."
    with temporary_folder() as folder:
        assert folder.is_dir()
    with main_first():
        return rank

assert (waiting(), run_on_main(waiting)) == (rank, 0)
print("done")
"""


def test_two_processes_share_work_and_errors():
    in_two_processes(SCRIPT)
