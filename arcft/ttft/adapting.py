"""Training of the units that are in the engine's slots: admitted, stepped together, ended, each at its own time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from arcft.models.lora import LoraError
from arcft.models.stacked_lora import StackedLora
from arcft.text.examples import LengthError
from arcft.text.tokens import Example
from arcft.training.slots import SlotStep, SlotTrainer
from arcft.ttft.climb import Climb
from arcft.ttft.preparing import Preparing
from arcft.ttft.pupil import Pupil, Save
from arcft.ttft.recipe import Current, Recipe, difference, explain, forget, is_out_of_memory, lower
from arcft.ttft.units import MAIN, Adapted, Assignment, Event, Failed, Lowered, Started, Stepped

SHARE_OF_TRAINING = 0.5
"""Of the time to a deadline; the rest is for predictions."""


class Adapting:
    """The pupils, in slots without gaps from 0 on."""

    def __init__(
        self,
        stacked: StackedLora,
        trainer: SlotTrainer,
        preparing: Preparing,
        current: Current,
        *,
        patience: int | None,
        climb: Climb | None,
        save: Save | None,
        clock: Callable[[], float],
    ) -> None:
        self.pupils: list[Pupil] = []
        self.climb = climb
        self._stacked = stacked
        self._trainer = trainer
        self._preparing = preparing
        self._current = current
        self._patience = patience
        self._save = save
        self._clock = clock

    @property
    def capacity(self) -> int:
        """How many units may be in training or wait for their turn in a slot."""
        if any(pupil.alone for pupil in self.pupils):
            return 1
        return self._current.recipe.slots if self.climb is None else self.climb.wanted

    def make_room(self) -> Iterator[Event]:
        """Have a slot for one more unit; where there is no memory for it, be content with those that there are."""
        if len(self.pupils) < self._stacked.slots or len(self.pupils) >= self.capacity:
            return
        slots = self._stacked.slots
        aside = [(pupil.slot, self._trainer.snapshot(pupil.slot).cpu()) for pupil in self.pupils if pupil.begun]
        try:
            self._stacked.resize(self.capacity)
            return
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            words = forget(error)
        self._stacked.resize(slots)
        for slot, weights in aside:
            self._trainer.restore(slot, weights)
        if self.climb is not None:
            yield from self._choose(slots, f"no memory for more: {words}")
            return
        new = dataclasses.replace(self._current.recipe, slots=slots)
        reason = f"{difference(self._current.recipe, new)} ({words})"
        yield self._lowered(self.pupils[0].assignment, new, reason)

    def admit(self, assignment: Assignment, notes: Sequence[str] = ()) -> Iterator[Event]:
        """Put the unit into the next free slot, or say why it can't be."""
        try:
            lessons = self._preparing.lessons(assignment)
        except LengthError as error:
            yield Failed(key=assignment.key, reason=str(error), retry=False)
            return
        train_until = None
        if assignment.deadline is not None:
            now = self._clock()
            train_until = now + SHARE_OF_TRAINING * max(0.0, assignment.deadline - now)
        self.pupils.append(Pupil(assignment, len(self.pupils), lessons, train_until))
        yield self.started(assignment, (*notes, *lessons.notes))

    def started(self, assignment: Assignment, notes: Sequence[str] = ()) -> Started:
        return Started(key=assignment.key, recipe=self._preparing.recipe(assignment), notes=tuple(notes))

    def advance(self) -> Iterator[Event]:
        """One pass: an optimizer step of each pupil in it."""
        group = self._next_group()
        if not group:
            return
        try:
            for pupil in group:
                if not pupil.begun:
                    self._begin(pupil)
            begun = time.perf_counter()
            examples = [self._preparing.examples(pupil) for pupil in group]
            steps = self._trainer.step(examples, group[0].slot)
            seconds = time.perf_counter() - begun
        except Exception as error:
            failure = error
        else:
            yield from self._record(group, examples, steps, seconds)
            return
        yield from self._fail_or_lower(group, failure)

    def hand_over(self) -> Iterator[tuple[Pupil, Adapted]]:
        """The pupils that have ended, their best weights in their slots, which they keep until `dismiss`."""
        for pupil in list(self.pupils):
            ended = pupil.ended(self._patience, self._clock())
            if ended is None or pupil.slot >= self._stacked.slots:
                continue
            if not pupil.begun:
                self._stacked.reset(pupil.slot)
            elif pupil.best is not None and pupil.best[1] != pupil.step:
                self._trainer.restore(pupil.slot, pupil.best[2])
            adapter = None
            if self._save is not None and pupil.assignment.round == MAIN:
                write = partial(self._stacked.save, pupil.slot)
                adapter = self._save(pupil.assignment.unit, pupil.step, write)
            yield (
                pupil,
                Adapted(
                    key=pupil.assignment.key,
                    steps=pupil.step,
                    tokens=pupil.tokens,
                    seconds=pupil.seconds,
                    losses=tuple(pupil.losses),
                    ended=ended,
                    adapter=adapter,
                ),
            )

    def dismiss(self, gone: Sequence[Pupil]) -> None:
        """Free the slots of `gone`; those behind move up."""
        self.pupils = [pupil for pupil in self.pupils if pupil not in gone]
        for slot, pupil in enumerate(self.pupils):
            if pupil.slot != slot and pupil.begun:
                self._trainer.move(pupil.slot, slot)
            pupil.slot = slot
        self._shrink()

    def _shrink(self) -> None:
        """Give back the memory of slots that will not be used again."""
        used = [pupil.slot + 1 for pupil in self.pupils if pupil.begun]
        needed = max([self._current.recipe.slots, *used])
        if self.climb is None and needed < self._stacked.slots:
            self._stacked.resize(needed)

    def decide(self) -> Iterator[Event]:
        """End the measuring of ttft.slots=auto where it has come to a choice, or can't go on with what is at hand."""
        climb = self.climb
        if climb is None or not self.pupils:
            return
        if climb.choice is None and len(self.pupils) < climb.wanted:
            climb.stop()
        if climb.choice is not None:
            yield from self._choose(climb.choice, climb.words() if climb.gains else "nothing to compare")

    def _choose(self, slots: int, reason: str) -> Iterator[Event]:
        self.climb = None
        self._current.recipe = dataclasses.replace(self._current.recipe, slots=slots)
        yield Lowered(
            key=self.pupils[0].assignment.key,
            recipe=dataclasses.asdict(self._current.recipe),
            reason=f"ttft.slots=auto: {slots} ({reason})",
        )

    def _next_group(self) -> list[Pupil]:
        if self.climb is not None and len(self.pupils) >= self.climb.wanted:
            first, count = self.climb.next()
            return self.pupils[first : first + count]
        return self.pupils[: max(1, self._current.recipe.slots)]

    def _record(
        self, group: Sequence[Pupil], examples: Sequence[Sequence[Example]], steps: Sequence[SlotStep], seconds: float
    ) -> Iterator[Event]:
        tokens = [sum(len(example.input_ids) for example in own) for own in examples]
        if self.climb is not None:
            self.climb.record(sum(tokens), seconds)
        for pupil, step, own in zip(group, steps, tokens, strict=True):
            pupil.tokens += own
            pupil.seconds += seconds / len(group)
            pupil.losses.append(step.loss)
            if not step.finite:
                reason = f"loss {step.loss:.4g}, gradient norm {step.gradient_norm:.4g} in step {pupil.step}"
                yield from self._fail([pupil], f"not finite: {reason}")
                continue
            yield Stepped(
                key=pupil.assignment.key,
                step=pupil.step,
                steps=pupil.assignment.steps,
                loss=step.loss,
                tokens=own,
                seconds=seconds / len(group),
            )
            try:
                self._check(pupil)
            except Exception as error:
                failure = error
            else:
                continue
            yield from self._fail_or_lower([pupil], failure)

    def _check(self, pupil: Pupil) -> None:
        """Look at what is held back, from time to time and after the last step."""
        patience = self._patience
        if patience is None or not pupil.lessons.held_back:
            return
        if pupil.step % max(1, patience // 4) and pupil.step < pupil.assignment.steps:
            return
        begun = time.perf_counter()
        loss = self._trainer.loss(pupil.slot, pupil.lessons.held_back)
        pupil.seconds += time.perf_counter() - begun
        if pupil.best is None or loss < pupil.best[0]:
            pupil.best = (loss, pupil.step, self._trainer.snapshot(pupil.slot))

    def _begin(self, pupil: Pupil) -> None:
        assignment = pupil.assignment
        rate, factor = self._preparing.rate(assignment), self._preparing.factor(assignment)
        self._trainer.begin(pupil.slot, learning_rate=rate, factor=factor)
        pupil.begun = True
        self._check(pupil)

    def _fail_or_lower(self, group: Sequence[Pupil], error: Exception) -> Iterator[Event]:
        """What follows an error in a pass of `group`: a lower recipe, if memory ran out, or the units fail."""
        if isinstance(error, LoraError):
            # What the layers of this model say about more than one slot, whatever the unit.
            if self.climb is None or len(group) == 1:
                raise error
            yield from self._choose(1, str(error))
            return
        if not is_out_of_memory(error):
            yield from self._fail(group, explain(error), retry=not isinstance(error, LengthError))
            return
        words = forget(error)
        if self.climb is not None:
            self.climb.stop(at_most=max(1, len(group) // 2))
            assert self.climb.choice is not None
            yield from self._choose(self.climb.choice, f"no memory for {len(group)}: {words}")
            return
        yield from self._lower(group, words)

    def _lower(self, group: Sequence[Pupil], words: str) -> Iterator[Event]:
        old = self._current.recipe
        surplus = [pupil for pupil in self.pupils if pupil.begun and pupil.slot >= old.slots]
        if surplus:
            # They were begun when there were more slots. What they have learned is given up before the recipe is.
            for pupil in surplus:
                pupil.start_over()
            self._shrink()
            yield self._lowered(group[0].assignment, old, f"{len(surplus)} units begin again later: {words}")
            return
        longest = max(len(example.input_ids) for pupil in group for example in self._preparing.examples(pupil))
        # Slots that the pass did not use are no memory to be won.
        held = dataclasses.replace(old, slots=min(old.slots, max(2, len(group))))
        new = lower(held, longest=longest, shortest=self._preparing.shortest_context)
        if new is None or not self._can_have(new):
            yield from self._fail(group, f"out of memory, and nothing is left to give up: {words}")
            return
        yield self._lowered(group[0].assignment, new, f"{difference(old, new)} ({words})")
        yield from self._apply(old, new)

    def _can_have(self, new: Recipe) -> bool:
        """Bring the adapters to the new rank, if it is another; False where there is no memory even for that."""
        if new.rank == self._stacked.rank:
            return True
        try:
            self._stacked.lower_rank(new.rank)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            forget(error)
            return False
        for pupil in self.pupils:
            # Weights of another shape; the next check takes new ones.
            pupil.best = None
        return True

    def _lowered(self, assignment: Assignment, new: Recipe, words: str) -> Lowered:
        self._current.recipe = new
        return Lowered(key=assignment.key, recipe=dataclasses.asdict(new), reason=f"out of memory: {words}")

    def _apply(self, old: Recipe, new: Recipe) -> Iterator[Event]:
        self._trainer.gradient_checkpointing = new.gradient_checkpointing
        for pupil in self.pupils:
            if pupil.slot >= new.slots and not pupil.losses:
                pupil.start_over()
        self._shrink()
        if new.max_seq_length != old.max_seq_length:
            for pupil in list(self.pupils):
                try:
                    pupil.lessons = self._preparing.lessons(pupil.assignment)
                except LengthError as error:
                    yield Failed(key=pupil.assignment.key, reason=str(error), retry=False)
                    self.dismiss([pupil])

    def _fail(self, group: Sequence[Pupil], reason: str, *, retry: bool = True) -> Iterator[Event]:
        for pupil in group:
            yield Failed(key=pupil.assignment.key, reason=reason, retry=retry)
        self.dismiss(group)
