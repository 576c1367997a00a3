"""Training of the units in the engine's slots: they step together, but start and end independently."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from arcft.models.lora import LoraError
from arcft.models.stacked_lora import StackedLora
from arcft.text.stream import LengthError
from arcft.text.tokens import Example
from arcft.training.slots import SlotStep, SlotTrainer
from arcft.ttft.engine.memory_ladder import (
    Current,
    MemorySettings,
    difference,
    explain,
    is_out_of_memory,
    lower,
    release_memory,
)
from arcft.ttft.engine.slot import Save, SlotState
from arcft.ttft.engine.slot_autotune import MOST, SlotSearch
from arcft.ttft.engine.unit_settings import UnitSettings
from arcft.ttft.units import ADAPT_ROUND, Adapted, Assignment, Event, Failed, Lowered, Started, Stepped

SHARE_OF_TRAINING = 0.5
"""Share of the time to a deadline that is spent on training; the rest is for predictions."""

MUCH_SHORTER = 2
"""ttft.slots=auto measures again once units are shorter by this factor."""


class SlotTraining:
    """The units in training; they occupy slots 0, 1, ... without gaps."""

    def __init__(
        self,
        stacked: StackedLora,
        trainer: SlotTrainer,
        settings: UnitSettings,
        current: Current,
        *,
        patience: int | None,
        measures: bool,
        save: Save | None,
        clock: Callable[[], float],
    ) -> None:
        """`measures`: choose the number of slots by timing, and again once units are much shorter."""
        self.occupants: list[SlotState] = []
        self.search = None if current.recipe.slots_known else SlotSearch()
        self._measures = measures
        self._measured_at: int | None = None
        self._stacked = stacked
        self._trainer = trainer
        self._settings = settings
        self._current = current
        self._patience = patience
        self._save = save
        self._clock = clock

    @property
    def capacity(self) -> int:
        """How many units may be in training, or waiting in a slot."""
        if any(occupant.alone for occupant in self.occupants):
            return 1
        return self._current.recipe.slots if self.search is None else self.search.wanted

    def make_room(self) -> Iterator[Event]:
        """Allocate one more slot; on out of memory keep the current number."""
        if len(self.occupants) < self._stacked.slots or len(self.occupants) >= self.capacity:
            return
        slots = self._stacked.slots
        try:
            self._stacked.resize(self.capacity)
            return
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            words = release_memory(error)
        if self.search is not None:
            yield from self._choose(slots, f"no memory for more: {words}")
            return
        new = dataclasses.replace(self._current.recipe, slots=slots)
        reason = f"{difference(self._current.recipe, new)} ({words})"
        yield self._lowered(self.occupants[0].assignment, new, reason)

    def admit(self, assignment: Assignment, notes: Sequence[str] = ()) -> Iterator[Event]:
        """Put the unit into the next free slot, or report why it can't be trained."""
        try:
            examples = self._settings.unit_examples(assignment)
        except LengthError as error:
            yield Failed(key=assignment.key, reason=str(error), retry=False)
            return
        train_until = None
        if assignment.deadline is not None:
            now = self._clock()
            train_until = now + SHARE_OF_TRAINING * max(0.0, assignment.deadline - now)
        self.occupants.append(SlotState(assignment, len(self.occupants), examples, train_until))
        recipe = self._settings.recipe(assignment, examples)
        yield Started(key=assignment.key, recipe=recipe, notes=(*notes, *examples.notes))

    def advance(self) -> Iterator[Event]:
        """One pass: an optimizer step for each unit in the group."""
        group = self._next_group()
        if not group:
            return
        try:
            for occupant in group:
                if not occupant.begun:
                    self._begin(occupant)
            begun = time.perf_counter()
            examples = [self._settings.next_examples(occupant) for occupant in group]
            steps = self._trainer.step(examples, group[0].slot)
            seconds = time.perf_counter() - begun
        except Exception as error:
            failure = error
        else:
            yield from self._record(group, examples, steps, seconds)
            return
        yield from self._fail_or_lower(group, failure)

    def pop_finished(self) -> Iterator[tuple[SlotState, Adapted]]:
        """The units that have finished, with their best weights in their slots until `free_slots` is called."""
        for occupant in list(self.occupants):
            ended = occupant.ended(self._patience, self._clock())
            if ended is None or occupant.slot >= self._stacked.slots:
                continue
            if not occupant.begun:
                self._stacked.reset(occupant.slot)
            elif occupant.best is not None and occupant.best[1] != occupant.step:
                self._trainer.restore(occupant.slot, occupant.best[2])
            adapter = None
            if self._save is not None and occupant.assignment.round == ADAPT_ROUND:
                write = partial(self._stacked.save, occupant.slot)
                adapter = self._save(occupant.assignment.unit, occupant.step, write)
            yield (
                occupant,
                Adapted(
                    key=occupant.assignment.key,
                    steps=occupant.step,
                    tokens=occupant.tokens,
                    seconds=occupant.seconds,
                    losses=tuple(occupant.losses),
                    ended=ended,
                    adapter=adapter,
                ),
            )

    def free_slots(self, gone: Sequence[SlotState]) -> None:
        """Free the slots of `gone` and close the gaps."""
        self.occupants = [occupant for occupant in self.occupants if occupant not in gone]
        for slot, occupant in enumerate(self.occupants):
            if occupant.slot != slot and occupant.begun:
                self._trainer.move(occupant.slot, slot)
            occupant.slot = slot
        self._shrink()

    def _shrink(self) -> None:
        """Free the memory of slots that are no longer needed."""
        used = [occupant.slot + 1 for occupant in self.occupants if occupant.begun]
        needed = max([self._current.recipe.slots, *used])
        if self.search is None and needed < self._stacked.slots:
            self._stacked.resize(needed)

    def decide(self) -> Iterator[Event]:
        """Apply the choice of ttft.slots=auto once it is made, or when there are too few units to go on measuring."""
        if not self._measures or not self.occupants:
            return
        length = max(occupant.assignment.unit.length for occupant in self.occupants)
        search = self.search
        if search is None:
            # A machine that one long task keeps busy may have room for many short ones. (The lengths behind an
            # earlier engine's choice are unknown.)
            self._measured_at = self._measured_at or length
            slots = self._current.recipe.slots
            is_full = len(self.occupants) >= slots and not self.occupants[0].alone
            if self._measured_at >= MUCH_SHORTER * length and is_full and slots < MOST:
                self.search = SlotSearch(slots)
            return
        if search.choice is None and len(self.occupants) < search.wanted:
            search.wait()
        if search.choice is not None:
            yield from self._choose(search.choice, search.words() if search.gains else "nothing to compare")

    def _choose(self, slots: int, reason: str) -> Iterator[Event]:
        self.search = None
        self._measured_at = max(occupant.assignment.unit.length for occupant in self.occupants)
        self._current.recipe = dataclasses.replace(self._current.recipe, slots=slots, slots_known=True)
        self._shrink()
        yield Lowered(
            key=self.occupants[0].assignment.key,
            recipe=dataclasses.asdict(self._current.recipe),
            reason=f"ttft.slots=auto: {slots} ({reason})",
        )

    @property
    def _is_measuring(self) -> bool:
        """Whether the next pass is one that the search requested."""
        return self.search is not None and len(self.occupants) >= self.search.wanted

    def _next_group(self) -> list[SlotState]:
        if self.search is not None:
            first, count = self.search.next() if self._is_measuring else (0, self.search.level)
            return self.occupants[first : first + count]
        return self.occupants[: max(1, self._current.recipe.slots)]

    def _record(
        self,
        group: Sequence[SlotState],
        examples: Sequence[Sequence[Example]],
        steps: Sequence[SlotStep],
        seconds: float,
    ) -> Iterator[Event]:
        tokens = [sum(len(example.input_ids) for example in own) for own in examples]
        if self.search is not None and self._is_measuring:
            self.search.record(sum(tokens), seconds)
        for occupant, step, own in zip(group, steps, tokens, strict=True):
            occupant.tokens += own
            occupant.seconds += seconds / len(group)
            occupant.losses.append(step.loss)
        for occupant, step, own in zip(group, steps, tokens, strict=True):
            if not step.finite:
                reason = f"loss {step.loss:.4g}, gradient norm {step.gradient_norm:.4g} in step {occupant.step}"
                yield from self._fail([occupant], f"not finite: {reason}")
                continue
            yield Stepped(
                key=occupant.assignment.key,
                step=occupant.step,
                steps=occupant.assignment.steps,
                loss=step.loss,
                tokens=own,
                seconds=seconds / len(group),
            )
        for occupant in group:
            if occupant not in self.occupants or not occupant.begun:
                continue  # failed, or lost its slot
            try:
                self._check(occupant)
            except Exception as error:
                failure = error
            else:
                continue
            yield from self._fail_or_lower([occupant], failure)

    def _check(self, occupant: SlotState) -> None:
        """Evaluate the held-back examples, periodically and after the last step."""
        patience = self._patience
        if patience is None or not occupant.examples.held_back:
            return
        if occupant.step % max(1, patience // 4) and occupant.step < occupant.assignment.steps:
            return
        begun = time.perf_counter()
        loss = self._trainer.loss(occupant.slot, occupant.examples.held_back)
        occupant.seconds += time.perf_counter() - begun
        if occupant.best is None or loss < occupant.best[0]:
            occupant.best = (loss, occupant.step, self._trainer.snapshot(occupant.slot))

    def _begin(self, occupant: SlotState) -> None:
        assignment = occupant.assignment
        rate, factor = self._settings.rate(assignment), self._settings.factor(assignment)
        self._trainer.begin(occupant.slot, learning_rate=rate, factor=factor)
        occupant.begun = True
        self._check(occupant)

    def _fail_or_lower(self, group: Sequence[SlotState], error: Exception) -> Iterator[Event]:
        """Handle an error in a pass of `group`: reduce the memory settings on out of memory, else fail the units."""
        if isinstance(error, LoraError):
            # The model's layers don't support more than one slot, whatever the unit.
            if self.search is None or len(group) == 1:
                raise error
            self._measures = False
            yield from self._choose(1, str(error))
            return
        if not is_out_of_memory(error):
            yield from self._fail(group, explain(error), retry=not isinstance(error, LengthError))
            return
        words = release_memory(error)
        if self.search is not None:
            self.search.stop(at_most=max(1, len(group) // 2))
            assert self.search.choice is not None
            yield from self._choose(self.search.choice, f"no memory for {len(group)}: {words}")
            return
        yield from self._lower(group, words)

    def _lower(self, group: Sequence[SlotState], words: str) -> Iterator[Event]:
        old = self._current.recipe
        surplus = [occupant for occupant in self.occupants if occupant.begun and occupant.slot >= old.slots]
        if surplus:
            # They started when there were more slots. Restart them before reducing the settings.
            for occupant in surplus:
                occupant.start_over()
            self._shrink()
            yield self._lowered(group[0].assignment, old, f"{len(surplus)} units restart later: {words}")
            return
        longest = max(
            len(example.input_ids)
            for occupant in group
            for example in (*occupant.examples.held_back, *self._settings.next_examples(occupant))
        )
        # Dropping slots that the pass did not use would free no memory.
        held = dataclasses.replace(old, slots=min(old.slots, max(2, len(group))))
        new = lower(held, longest=longest, shortest=self._settings.shortest_context)
        if new is None or not self._can_have(new):
            yield from self._fail(group, f"out of memory, and no setting is left to reduce: {words}")
            return
        yield self._lowered(group[0].assignment, new, f"{difference(old, new)} ({words})")
        yield from self._apply(old, new)

    def _can_have(self, new: MemorySettings) -> bool:
        """Reduce the adapters to the new rank, if it changed; False if there is not even enough memory for that."""
        if new.rank == self._stacked.rank:
            return True
        try:
            self._stacked.lower_rank(new.rank)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            release_memory(error)
            return False
        for occupant in self.occupants:
            # The snapshot has another shape now; the next check takes a new one.
            occupant.best = None
        return True

    def _lowered(self, assignment: Assignment, new: MemorySettings, words: str) -> Lowered:
        self._current.recipe = new
        return Lowered(key=assignment.key, recipe=dataclasses.asdict(new), reason=f"out of memory: {words}")

    def _apply(self, old: MemorySettings, new: MemorySettings) -> Iterator[Event]:
        self._trainer.gradient_checkpointing = new.gradient_checkpointing
        for occupant in self.occupants:
            if occupant.slot >= new.slots and not occupant.losses:
                occupant.start_over()
        self._shrink()
        if new.max_seq_length != old.max_seq_length:
            for occupant in list(self.occupants):
                try:
                    occupant.examples = self._settings.unit_examples(occupant.assignment)
                except LengthError as error:
                    yield Failed(key=occupant.assignment.key, reason=str(error), retry=False)
                    self.free_slots([occupant])

    def _fail(self, group: Sequence[SlotState], reason: str, *, retry: bool = True) -> Iterator[Event]:
        for occupant in group:
            yield Failed(key=occupant.assignment.key, reason=reason, retry=retry)
        self.free_slots(group)
