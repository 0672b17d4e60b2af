"""Work shared by processes: order, empty shares, and errors that reach all of them."""

from launching import in_two_processes

SCRIPT = """
import sys
from accelerate import PartialState
from sft.errors import UserError
from sft.distributed.collectives import from_main, main_first, own_share, split, temporary_folder
state = PartialState(cpu=True)
rank = state.process_index

def square(own):
    assert own, "no call for an empty share"
    return [(n * n, rank) for n in own]

def refuse(own):
    raise UserError(f"no {own}")

def full():
    raise OSError(28, "No space left on device", "x.json")

assert split(range(5), square) == [(0, 0), (1, 1), (4, 0), (9, 1), (16, 0)]
assert split([7], square) == [(49, 0)]
assert split([], square) == []
for work, kind, words in (
    (lambda: split([0, 1], refuse), UserError, "no [0]"),
    (lambda: split([0, 1], lambda own: refuse(own) if rank else own), UserError, "no [1]"),
    (lambda: from_main(lambda: refuse(rank)), UserError, "no 0"),
    (lambda: from_main(full), OSError, "x.json"),
):
    try:
        work()
    except kind as error:
        assert words in str(error), error
    else:
        raise AssertionError(words)
assert from_main(lambda: rank) == 0
assert from_main(lambda: split([3, 4], square)) == [(9, 0), (16, 0)]
assert from_main(lambda: [*own_share("ab"), from_main(lambda: rank)]) == ["a", "b", 0]
assert own_share("ab") == ["ab"[rank]]

def waiting():
    "What waits for the others, and must not where one process is alone."
    with temporary_folder() as folder:
        assert folder.is_dir()
    with main_first():
        return rank

assert (waiting(), from_main(waiting)) == (rank, 0)
print("done")
"""


def test_two_processes_share_work_and_errors():
    in_two_processes(SCRIPT)
