"""Functions and classes of ``__main__``: of a script, of a program on standard input, of a notebook."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def run(*command: str, program: str | None = None, cwd: Path = ROOT) -> str:
    """What a driver prints; it must end well and without a word on standard error."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        input=program,
        timeout=40,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


SCRIPT = """
import dataclasses
import enum
import functools
import sys
import typing

import numpy as np

import zray

OFFSET = 100
TABLE = np.arange(50_000)

class Color(enum.Enum):
    RED = 1
    BLUE = 2

@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    y: int = 0

    def moved(self, by):
        return Point(self.x + by, self.y)

class Pair(typing.NamedTuple):
    left: int
    right: int

class OwnError(Exception):
    def __init__(self, code):
        super().__init__(f"code {code}")
        self.code = code

class Slots:
    __slots__ = ("a", "__private")
    def __init__(self, a):
        self.a = self.__private = a

class MoreSlots(Slots):
    __slots__ = "b"

@dataclasses.dataclass(slots=True)
class SlotsPoint:
    x: int
    y: int = 5

def helper(x):
    return x + OFFSET

def decorated(function):
    @functools.wraps(function)
    def inner(*args):
        return function(*args) * 2
    return inner

@zray.remote
def use_helper(x):
    return helper(x)

@zray.remote
def use_table(i):
    return int(TABLE[i])

@zray.remote
@decorated
def doubled(x):
    return helper(x)

@zray.remote
def fact(n):
    return 1 if n < 2 else n * zray.get(fact.remote(n - 1))

@zray.remote
def even(n):
    return True if n == 0 else zray.get(odd.remote(n - 1))

@zray.remote
def odd(n):
    return False if n == 0 else zray.get(even.remote(n - 1))

@zray.remote
def move(point, color):
    assert isinstance(point, Point) and color is Color.RED
    return point.moved(OFFSET), color, Pair(1, 2), [Slots(5), MoreSlots(6), SlotsPoint(7)]

@zray.remote
def fail():
    raise OwnError(7)

@zray.remote
def generator(n):
    def numbers():
        yield from range(n)
    return sum(numbers())

class Base:
    def greet(self):
        return f"hello from {type(self).__name__}"

@zray.remote
class Actor(Base):
    LIMIT = 3

    def __init__(self, point):
        self.points = [point]

    def add(self, point):
        assert isinstance(point, Point) and isinstance(self.points[0], Point)
        self.points.append(point)
        return len(self.points) < self.LIMIT

    def give(self):
        return self.points

    def clone(self):
        return Actor.remote(self.points[-1])

    def greet(self):
        return super().greet()

def main():
    zray.init(num_cpus=2)
    assert zray.get(use_helper.remote(1)) == 101
    assert zray.get(use_table.remote(49_999)) == 49_999
    assert zray.get(doubled.remote(1)) == 202
    assert zray.get(fact.remote(5)) == 120
    assert zray.get(even.remote(4)) is True
    point, color, pair, slots = zray.get(move.remote(Point(1), Color.RED))
    assert (point, color, pair) == (Point(101), Color.RED, Pair(1, 2))
    assert [slots[0].a, slots[1].a, slots[2]] == [5, 6, SlotsPoint(7)]
    assert not hasattr(zray.get(zray.put(slots))[1], "__dict__")
    assert type(point) is Point and type(pair) is Pair and type(slots[0]) is Slots
    assert zray.get(zray.put({"p": Point(3)})) == {"p": Point(3)}
    try:
        zray.get(fail.remote())
    except OwnError as error:
        assert error.code == 7 and error.args == ("code 7",)
    assert zray.get(generator.remote(5)) == 10
    assert zray.get(zray.remote(lambda x, y=OFFSET: x + y).remote(1)) == 101
    assert zray.get(zray.remote(functools.partial(helper, 5)).remote()) == 105
    assert zray.get(zray.remote(Point(1).moved).remote(5)) == Point(6)
    counter = 0
    def local():
        nonlocal counter
        counter += 1
        return counter, __name__
    assert zray.get(zray.remote(local).remote())[0] == 1 and counter == 0
    actor = Actor.remote(Point(1))
    assert zray.get([actor.add.remote(Point(2)), actor.add.remote(Point(3))]) == [True, False]
    assert zray.get(actor.give.remote()) == [Point(1), Point(2), Point(3)]
    clone = zray.get(actor.clone.remote())
    assert zray.get(clone.give.remote()) == [Point(3)]
    assert zray.get(actor.greet.remote()) == "hello from Actor"
    print("fine")

if __name__ == "__main__":
    main()
"""


def test_script(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    assert run("script.py", cwd=tmp_path) == "fine\n"


def test_script_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    assert run(str(tmp_path / "script.py"), cwd=Path("/")) == "fine\n"


def test_module_of_a_package(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "part.py").write_text(SCRIPT)
    assert run("-m", "package.part", cwd=tmp_path) == "fine\n"


def test_command_line_and_standard_input(tmp_path: Path) -> None:
    assert run("-c", SCRIPT, cwd=tmp_path) == "fine\n"
    assert run("-", program=SCRIPT, cwd=tmp_path) == "fine\n"


def test_modules_beside_the_script(tmp_path: Path) -> None:
    """What a script imports from its own directory is imported in the workers too."""
    (tmp_path / "beside.py").write_text("class Thing:\n    value = 5\n\ndef make():\n    return Thing()\n")
    (tmp_path / "script.py").write_text(
        textwrap.dedent(
            """
            import beside
            import zray

            @zray.remote
            def look(thing):
                import beside as mine
                assert type(thing) is mine.Thing
                return mine.make()

            if __name__ == "__main__":
                thing = zray.get(look.remote(beside.Thing()))
                assert type(thing) is beside.Thing
                print(zray.get(zray.remote(beside.make).remote()).value)
            """
        )
    )
    assert run(str(tmp_path / "script.py"), cwd=ROOT) == "5\n"


NOTEBOOK = '''
import sys
import types

# What a notebook does: cells run one after the other in a module that calls itself __main__ and has no file.
main = types.ModuleType("__main__")
main.__dict__["__builtins__"] = __builtins__
sys.modules["__main__"] = main

def cell(number, source):
    exec(compile(source, f"<cell {number}>", "exec"), main.__dict__)

cell(1, """
import zray
zray.init(num_cpus=2)
SCALE = 2
""")
cell(2, """
class Thing:
    def __init__(self, value):
        self.value = value
    def scaled(self):
        return Thing(self.value * SCALE)

def helper(x):
    return x * SCALE

@zray.remote
def work(x):
    return helper(x)

@zray.remote
class Counter:
    def __init__(self):
        self.things = []
    def add(self, thing):
        self.things.append(thing.scaled())
        return self.things[-1]
""")
cell(3, """
assert zray.get(work.remote(5)) == 10
counter = Counter.remote()
thing = zray.get(counter.add.remote(Thing(3)))
assert type(thing) is Thing and thing.value == 6
""")
# A cell that is run again with a change: the new definition counts.
cell(4, """
def helper(x):
    return x + 1000

@zray.remote
def work(x):
    return helper(x)

assert zray.get(work.remote(5)) == 1005
""")
cell(5, """
class Thing:
    def __init__(self, value):
        self.value = -value
    def scaled(self):
        return Thing(self.value * 10)

thing = zray.get(zray.remote(lambda thing: thing.scaled()).remote(Thing(3)))
assert type(thing) is Thing and thing.value == 30
""")
# An error: the text has the function's name even without a file.
cell(6, """
@zray.remote
def fail():
    raise ValueError("in a cell")

try:
    zray.get(fail.remote())
except ValueError as error:
    assert "in fail" in str(error) and "in a cell" in str(error), error
else:
    raise AssertionError
""")
cell(7, """
@zray.remote
def fib(n):
    return n if n < 2 else sum(zray.get([fib.remote(n - 1), fib.remote(n - 2)]))

assert zray.get(fib.remote(6)) == 8
zray.shutdown()
zray.init(num_cpus=1)
assert zray.get(work.remote(5)) == 1005
print("fine")
""")
'''


def test_notebook(tmp_path: Path) -> None:
    (tmp_path / "notebook.py").write_text(NOTEBOOK)
    assert run("notebook.py", cwd=tmp_path) == "fine\n"


def test_prints_of_tasks_are_seen(tmp_path: Path) -> None:
    printed = run(
        "-c",
        textwrap.dedent(
            """
            import zray
            zray.init(num_cpus=1)
            zray.get(zray.remote(lambda: print("from a task")).remote())
            print("from the driver")
            """
        ),
        cwd=tmp_path,
    )
    task, driver = printed.splitlines()
    assert task.startswith("(<lambda> pid=")
    assert task.endswith(") from a task")
    assert driver == "from the driver"


def test_working_directory_is_the_drivers(tmp_path: Path) -> None:
    program = "import os, zray; zray.init(num_cpus=1); print(zray.get(zray.remote(os.getcwd).remote()))"
    assert run("-c", program, cwd=tmp_path) == f"{tmp_path.resolve()}\n"
