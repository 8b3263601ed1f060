"""The schedule under any order of events: every unit once, every merge of committed neighbours, nothing twice and nothing left."""

import random

import pytest

from microtome.engine import Node, Schedule, root
from microtome.engine.tasks import Task
from microtome.engine.tree import settled


class _World:
    """A place and its workers: what is committed, and the queue of each worker. Checks what real files would."""

    def __init__(self, total: int, seed: int, finished: set[Node]) -> None:
        self.total, self.chance = total, random.Random(seed)
        self.schedule = Schedule(total, set(finished))
        self.files = set(finished)
        self.queues: dict[int, list[Task]] = {}
        self.computed: list[int] = []

    def join(self, worker: int) -> None:
        self.queues[worker] = []

    def provide(self, ahead: int, *, late: bool) -> None:
        for worker, queue in self.queues.items():
            while self.schedule.busy(worker) < ahead:
                task = self.schedule.merge(worker) or self.schedule.unit(worker, len(self.queues))
                if task is None and not self.schedule.busy(worker) and late:
                    task = self.schedule.relief(worker, len(self.queues), sorted(self.queues))
                if task is None:
                    break
                queue.append(task)

    def work(self, worker: int) -> None:
        """The first of a worker's tasks is done."""
        if not self.queues[worker]:
            return
        task = self.queues[worker].pop(0)
        needed = set(task.replaced(self.total))
        if not needed <= self.files:  # what another has merged meanwhile
            assert not self.schedule.failed(worker, task)
            return
        assert sorted(unit for node in (task.start, *task.merged(self.total)) for unit in node.units(self.total)) == list(
            task.top.units(self.total)
        )
        self.files.add(task.top)
        replaced = self.schedule.done(worker, task)
        if task.begin == "compute" and replaced is not None:
            self.computed.append(task.start.index)
        self.files.difference_update(replaced or ())

    def kill(self, worker: int) -> None:
        del self.queues[worker]
        self.schedule.lost(worker)


@pytest.mark.parametrize("total", [1, 2, 3, 5, 8, 13, 64, 257])
@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("late", [False, True])
def test_any_order_of_work_deaths_and_copies_ends_with_every_unit_merged(total: int, workers: int, late: bool) -> None:
    for seed in range(20):
        world = _World(total, seed, set())
        for worker in range(workers):
            world.join(worker)
        for _ in range(100 * total + 1000):
            if world.schedule.complete:
                break
            world.provide(1 + seed % 3, late=late)
            worker = world.chance.choice(sorted(world.queues))
            if world.chance.random() < 0.05:
                world.kill(worker)
                world.join(max([worker, *world.queues]) + 1)
            else:
                world.work(worker)
        assert world.schedule.complete
        assert root(total) in world.files
        assert sorted(world.computed) == list(range(total)), "a unit counts once, whoever was quicker"
        assert world.schedule.finished == {root(total)}


def test_a_run_goes_on_from_any_set_of_finished_subtrees() -> None:
    total = 21
    chance = random.Random(4)
    for seed in range(50):
        units = set(range(total))
        finished: set[Node] = set()
        while units and chance.random() < 0.8:
            node = settled(Node(chance.choice([0, 0, 1, 2, 3]), chance.randrange(3)), total)
            if set(node.units(total)) <= units:
                finished.add(node)
                units -= set(node.units(total))
        world = _World(total, seed, finished)
        world.join(0)
        world.join(1)
        while not world.schedule.complete:
            world.provide(2, late=False)
            world.work(chance.choice([0, 1]))
        assert sorted(world.computed) == sorted(units)


def test_one_worker_climbs_as_far_as_it_can_at_once() -> None:
    schedule = Schedule(8, set())
    tops = []
    for _ in range(8):
        task = schedule.unit(0, 1)
        assert task is not None
        tops.append(str(task.top))
        schedule.done(0, task)
    assert tops == [
        "00-00000000",
        "01-00000000",
        "00-00000002",
        "02-00000000",
        "00-00000004",
        "01-00000002",
        "00-00000006",
        "03-00000000",
    ]
    assert schedule.complete


def test_most_merges_are_of_what_the_same_worker_has_just_committed() -> None:
    world = _World(4096, 0, set())
    for worker in range(4):
        world.join(worker)
    reads = 0
    while not world.schedule.complete:
        world.provide(2, late=False)
        for worker in range(4):
            reads += bool(world.queues[worker]) and world.queues[worker][0].begin == "read"
            world.work(worker)
    assert reads < 4096 / 20, "a merge that is a task of its own reads and writes a state more"


def test_a_worker_who_cannot_merge_is_given_units_alone() -> None:
    schedule = Schedule(4, set())
    tasks = [schedule.unit(0, 1, "nothing") for _ in range(4)]
    assert [task and task.merged(4) for task in tasks] == [[], [], [], []]
    for task in tasks:
        assert task is not None
        schedule.done(0, task)
    merges = []
    while task := schedule.merge(-1):
        merges.append(str(task.top))
        schedule.done(-1, task)
    assert merges == ["01-00000000", "02-00000000"]


@pytest.mark.parametrize("total", [5, 8, 33])
@pytest.mark.parametrize("moment", range(12))
def test_a_worker_that_stands_still_is_not_waited_for(total: int, moment: int) -> None:
    world = _World(total, moment, set())
    world.join(0)
    world.join(1)
    for turn in range(20 * total):
        if world.schedule.complete:
            break
        world.provide(2, late=turn > moment)
        world.work(1)
        if turn < moment:
            world.work(0)
    assert world.schedule.complete, "with whatever task the first of them was left: a unit, or a merge"
    assert sorted(world.computed) == list(range(total))


def test_what_a_late_worker_has_begun_is_copied_and_what_it_has_not_is_taken_away() -> None:
    schedule = Schedule(4, set())
    first, second = schedule.unit(0, 1), schedule.unit(0, 1)
    assert first is not None
    assert second is not None
    assert second.top == Node(1, 0), "it merges what the first will have committed"
    given = schedule.relief(1, 2, [0])
    assert given is not None
    assert given == Task("compute", Node(0, 1), Node(0, 1)), "which nobody has committed now"
    assert not schedule.failed(0, second)
    copy = schedule.relief(2, 3, [0])
    assert copy is not None
    assert copy == Task("compute", Node(0, 0), Node(0, 0))
    assert schedule.relief(3, 4, [0]) is None, "there is a copy"
    assert schedule.done(2, copy) == []
    assert schedule.done(0, first) is None, "somebody else was quicker"
    assert schedule.done(1, given) == []
    merge = schedule.merge(1)
    assert merge is not None
    assert merge.merged(4) == [Node(0, 1)]


def test_a_late_merge_is_copied_whole() -> None:
    schedule = Schedule(2, {Node(0, 0), Node(0, 1)})
    merge = schedule.merge(0)
    assert merge is not None
    assert merge == Task("read", Node(0, 0), Node(1, 0))
    assert schedule.relief(1, 2, [0], "nothing") is None, "who does not see the place cannot merge"
    assert schedule.relief(1, 2, [0]) == merge
    assert schedule.lost(0) == [merge]
    assert schedule.merge(2) is None, "it is being done"
    assert schedule.done(1, merge) == [Node(0, 0), Node(0, 1)]
    assert schedule.complete


def test_workers_are_wanted_for_what_nobody_has_been_given() -> None:
    schedule = Schedule(2, set())
    assert schedule.openings == 2
    first, second = schedule.unit(0, 2, "nothing"), schedule.unit(1, 2, "nothing")
    assert first is not None
    assert second is not None
    assert schedule.openings == 0
    schedule.lost(1)
    assert schedule.openings == 1
    second = schedule.unit(0, 2, "nothing")
    assert second is not None
    schedule.done(0, first)
    assert schedule.openings == 0
    schedule.done(0, second)
    assert schedule.openings == 1, "a merge, and nobody is at work"
    schedule.merge(0)
    assert schedule.openings == 0


def test_names_of_more_units_than_there_are_end_nothing() -> None:
    assert settled(Node(7, 0), 5) == Node(7, 0)
    assert settled(Node(0, 4), 5) == Node(2, 1)


def test_who_does_not_see_the_place_relieves_of_units_alone() -> None:
    schedule = Schedule(2, set())
    assert schedule.unit(0, 2, "nothing") == Task("compute", Node(0, 0), Node(0, 0))
    second = schedule.unit(0, 2, "nothing")
    assert schedule.relief(1, 2, [0], "nothing") == second, "not begun: taken away"
    assert schedule.relief(2, 3, [0], "nothing") == Task("compute", Node(0, 0), Node(0, 0)), "begun: copied"
